"""Guards on both of vLLM's model runners and in every mode of CUDA graphs: the tokens and verdicts
of the eager V1 runner, which `test_plugin` holds against transformers.

What a GPU does is emulated on a CPU (`tests.vllm.emulation`); each engine that starts serves many
requests, in one of the ways that an engine is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.steering.tiny import prompt  # noqa: E402
from tests.vllm.checkpoint import CONFIG, HALT  # noqa: E402
from tests.vllm.driver import alone, drawn, run  # noqa: E402

CROWDED = {"num_gpu_blocks_override": 14, "scheduling_policy": "priority"}
BARE = {"compilation_config": {"mode": 0}}
"""Not compiled."""


@pytest.fixture(scope="module")
def requests() -> list[dict[str, Any]]:
    return drawn(200, seed=7)


@pytest.fixture(scope="module")
def eager(folder: Path, requests: list[dict[str, Any]]) -> dict[str, Any]:
    return run(folder, requests, **CROWDED)


def _verdicts(one: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = one["guard"]
    return list(told["guards"]) if told is not None else []


def assert_alike(
    requests: Sequence[Mapping[str, Any]], came: Mapping[str, Any], right: Mapping[str, Any]
) -> int:
    """The same of all that were not aborted; gives how many guards fired among them."""
    fired = 0
    for request, one, other in zip(requests, came["phases"][0], right["phases"][0], strict=True):
        if "aborted" in request:
            continue
        assert one["tokens"] == other["tokens"], request
        assert one["finish"] == other["finish"], request
        assert (one["guard"] is None) == (other["guard"] is None)
        if one["guard"] is not None:
            assert one["guard"]["outcome"] == other["guard"]["outcome"], request
        for seen, again in zip(_verdicts(one), _verdicts(other), strict=True):
            assert (seen["guard"], seen["position"]) == (again["guard"], again["position"])
            assert seen["score"] == pytest.approx(again["score"], rel=1e-4)
            fired += seen["fired"]
    return fired


def assert_ran(came: Mapping[str, Any], runner: str, graphs: str | None, workers: int = 1) -> None:
    """So it ran, and no graph holds what a graph cannot."""
    assert len(came["workers"]) == workers
    for worker in came["workers"]:
        assert worker["runner"] == runner
        for kind, mode in (("full", "FULL"), ("pieces", "PIECEWISE")):
            expected = graphs is not None and mode in graphs
            assert (worker["captured"][kind] > 0) == expected
            assert (worker["replayed"][kind] > 3) == expected
            assert (worker["forwards"][mode] > 3) == expected
        # in pieces, the guards' operator stands between them
        assert (worker["looked_into"] > 0) == (graphs is not None and "FULL" in graphs)
        assert worker["syncs"] == worker["strangers"] == worker["moved"] == []


@pytest.mark.parametrize(
    ("runner", "graphs", "more"),
    [
        ("v2", None, {}),
        ("v2", "NONE", {"asynchronous": True}),
        ("v2", "PIECEWISE", {"idle": True}),
        ("v2", "FULL_DECODE_ONLY", BARE | {"idle": True}),
        ("v2", "FULL_AND_PIECEWISE", {"asynchronous": True}),
        ("v1", "PIECEWISE", {"asynchronous": True}),
        ("v1", "FULL_DECODE_ONLY", BARE | {"idle": True}),
        ("v1", "FULL_AND_PIECEWISE", {"asynchronous": True}),
    ],
)
def test_both_runners_guard_alike_in_every_mode(
    folder: Path,
    requests: list[dict[str, Any]],
    eager: dict[str, Any],
    runner: str,
    graphs: str | None,
    more: dict[str, Any],
) -> None:
    came = run(folder, requests, runner=runner, graphs=graphs, **CROWDED, **more)
    assert came["preempted"] > 10
    assert came["scheduler"].startswith("Async") == bool(more.get("asynchronous"))
    assert_ran(came, runner, graphs)
    assert assert_alike(requests, came, eager) > 60


DRAFTS = {
    "ngram": {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3},
    "model": {"method": "draft_model"},
}


@pytest.fixture(scope="module")
def repeating(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Requests whose answers repeat themselves, which is what drafts are right about."""
    (folder / "halt.toml").write_text(CONFIG + HALT, "utf-8")
    asked = [
        {"prompt": prompt(6, seed=i) * 2, "tokens": 30, "policy": policy}
        for i in range(8)
        for policy in ("none", "both", "watch", "halt")
    ]
    return asked, run(folder, asked, config="halt.toml")


@pytest.mark.parametrize(
    ("runner", "graphs", "method"),
    [
        ("v2", "PIECEWISE", "model"),
        ("v2", "FULL_AND_PIECEWISE", "ngram"),
        ("v1", "PIECEWISE", "ngram"),
    ],
)
def test_drafts_change_nothing(
    folder: Path,
    repeating: tuple[list[dict[str, Any]], dict[str, Any]],
    runner: str,
    graphs: str | None,
    method: str,
) -> None:
    asked, right = repeating
    settings = {**DRAFTS[method], "num_speculative_tokens": 3}
    if method == "model":
        settings["model"] = str(folder / "model")
    came = run(
        folder,
        asked,
        config="halt.toml",
        runner=runner,
        graphs=graphs,
        speculative_config=settings,
    )
    assert came["accepted"] > 10
    assert came["workers"][0]["runner"] == runner
    assert came["workers"][0]["syncs"] == came["workers"][0]["strangers"] == []
    assert assert_alike(asked, came, right) > 8


@pytest.mark.parametrize(
    ("runner", "graphs", "parallel"),
    [
        ("v2", "FULL_AND_PIECEWISE", "tensor"),
        ("v2", "FULL_AND_PIECEWISE", "pipeline"),
        ("v1", "FULL_AND_PIECEWISE", "tensor"),
    ],
)
def test_workers_that_share_a_model_decide_alike(
    folder: Path,
    requests: list[dict[str, Any]],
    eager: dict[str, Any],
    runner: str,
    graphs: str | None,
    parallel: str,
) -> None:
    asked = [alone(request) for request in requests[:32]]
    settings = {f"{parallel}_parallel_size": 2, "distributed_executor_backend": "mp"}
    came = run(folder, asked, runner=runner, graphs=graphs, **settings)
    assert_ran(came, runner, graphs, workers=2)
    right = {"phases": [eager["phases"][0][:32]]}
    # those that were aborted in a crowd have no answer to hold against
    kept = [i for i, request in enumerate(requests[:32]) if "aborted" not in request]
    for told in (came, right):
        told["phases"] = [[told["phases"][0][i] for i in kept]]
    assert assert_alike([asked[i] for i in kept], came, right) > 8


def test_guards_come_and_go_while_graphs_run(folder: Path) -> None:
    (folder / "live.toml").write_text(CONFIG, "utf-8")
    asked = [
        {"prompt": prompt(20 + 6 * i, seed=i), "tokens": 16, "policy": policy, "at": at}
        for at in (0, 30)
        for i in range(8)
        for policy in ("none", "firm", "both")
    ]
    texts = [CONFIG.replace('action = "steer"', 'action = "observe"'), CONFIG]
    (right, came) = (
        run(folder, asked, config="live.toml", reload=(20, texts), runner=runner, graphs=graphs)
        for runner, graphs in (("v1", None), ("v2", "FULL_AND_PIECEWISE"))
    )
    assert_ran(came, "v2", "FULL_AND_PIECEWISE")
    assert assert_alike(asked, came, right) > 8


def test_guards_for_which_graphs_have_no_room_are_refused_while_they_run(folder: Path) -> None:
    (folder / "full.toml").write_text("[server]\nguard_room = 3\n" + CONFIG, "utf-8")
    more = "\n".join(
        f'[[guards]]\nname = "more{i}"\nartifact = "firm.safetensors"\nthreshold = {i}.5\n'
        f'[policies.more{i}]\nguards = ["more{i}"]\naction = "steer"'
        for i in range(2)
    )
    asked = [
        {"prompt": prompt(20 + 6 * i, seed=i), "tokens": 12, "policy": policy, "at": at}
        for at in (0, 30)
        for i in range(6)
        for policy in ("firm", "both")
    ]
    texts = ["[server]\nguard_room = 3\n" + CONFIG + "\n" + more]
    settings = {"runner": "v2", "graphs": "FULL_AND_PIECEWISE"}
    came = run(folder, asked, config="full.toml", reload=(20, texts), **settings)
    (refused,) = [one["reload"] for one in came["phases"][0] if "reload" in one]
    assert "room for 3" in refused and "guard_room in [server]" in refused
    came["phases"] = [came["phases"][0][: len(asked)]]
    assert assert_alike(asked, came, run(folder, asked)) > 4
