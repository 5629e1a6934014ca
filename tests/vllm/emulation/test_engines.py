"""vLLM itself, without guards: the same tokens on both runners and in every mode of graphs, and
operators that graphs cannot serve give wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.steering.tiny import prompt  # noqa: E402
from tests.vllm.checkpoint import save  # noqa: E402
from tests.vllm.driver import drawn, run  # noqa: E402

CROWDED = {"num_gpu_blocks_override": 14, "scheduling_policy": "priority"}
DECODES = {"graphs": "FULL_DECODE_ONLY", "compilation_config": {"mode": 0}}
"""Full graphs of a model that is not compiled, which is soonest made."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("emulation")
    save(made)
    return made


@pytest.fixture(scope="module")
def requests() -> list[dict[str, Any]]:
    return [request | {"policy": None} for request in drawn(200, seed=5)]


@pytest.fixture(scope="module")
def eager(folder: Path, requests: list[dict[str, Any]]) -> dict[str, Any]:
    return run(folder, requests, config=None, **CROWDED)


@pytest.mark.parametrize(
    ("runner", "graphs", "more"),
    [
        ("v2", None, {"asynchronous": True}),
        ("v1", "FULL_AND_PIECEWISE", {"asynchronous": True}),
        ("v2", "FULL_AND_PIECEWISE", {"idle": True}),
        ("v1", "FULL_DECODE_ONLY", {"compilation_config": {"mode": 0}, "idle": True}),
    ],
)
def test_tokens_are_those_of_the_eager_v1_runner(
    folder: Path,
    requests: list[dict[str, Any]],
    eager: dict[str, Any],
    runner: str,
    graphs: str | None,
    more: dict[str, Any],
) -> None:
    came = run(folder, requests, config=None, runner=runner, graphs=graphs, **CROWDED, **more)
    assert came["preempted"] > 10 and eager["preempted"] > 10
    pairs = [
        (one["tokens"], other["tokens"])
        for request, one, other in zip(requests, eager["phases"][0], came["phases"][0], strict=True)
        if "aborted" not in request
    ]
    assert len(pairs) > 150
    assert all(one == other for one, other in pairs)
    (worker,) = came["workers"]
    assert worker["runner"] == runner
    assert came["scheduler"] == ("AsyncScheduler" if more.get("asynchronous") else "Scheduler")
    full, pieces = graphs is not None and "FULL" in graphs, graphs is not None and "PIECE" in graphs
    for kind, mode, expected in (("full", "FULL", full), ("pieces", "PIECEWISE", pieces)):
        assert (worker["captured"][kind] > 3) == expected
        assert (worker["replayed"][kind] > 50) == expected
        assert (worker["forwards"][mode] > 20) == expected
    assert (worker["padded"] > 20) == (graphs is not None)


def _asked() -> list[dict[str, Any]]:
    return [{"prompt": prompt(5 + 3 * i, seed=i), "tokens": 8} for i in range(12)]


def _tokens(came: dict[str, Any]) -> list[Any]:
    return [one["tokens"] for one in came["phases"][0]]


@pytest.fixture(scope="module")
def multiplied(folder: Path) -> list[Any]:
    """The right tokens where the faults' operator acts."""
    hook = "tests.vllm.emulation.faults:by_branch"
    return _tokens(run(folder, _asked(), config=None, hook=hook))


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_an_operator_of_buffers_is_served_by_graphs(
    folder: Path, multiplied: list[Any], runner: str
) -> None:
    hook = "tests.vllm.emulation.faults:by_buffer"
    came = run(folder, _asked(), config=None, runner=runner, hook=hook, **DECODES)
    assert _tokens(came) == multiplied
    (worker,) = came["workers"]
    assert worker["looked_into"] > 10 and worker["forwards"]["FULL"] > 5
    assert worker["syncs"] == worker["strangers"] == worker["moved"] == []


@pytest.mark.parametrize(
    ("fault", "runner", "more"),
    [
        ("by_branch", "v1", DECODES),
        ("by_stranger", "v2", DECODES),
        ("by_branch", "v2", {"graphs": "PIECEWISE"}),
    ],
)
def test_an_operator_that_graphs_cannot_serve_gives_wrong_tokens(
    folder: Path, multiplied: list[Any], fault: str, runner: str, more: dict[str, Any]
) -> None:
    hook = f"tests.vllm.emulation.faults:{fault}"
    came = run(folder, _asked(), config=None, runner=runner, hook=hook, **more)
    wrong = sum(one != other for one, other in zip(_tokens(came), multiplied, strict=True))
    assert wrong > 6
    (worker,) = came["workers"]
    assert worker["looked_into"] > 10
    assert bool(worker["strangers"]) == bool(worker["syncs"]) == (fault == "by_stranger")


def test_an_operator_that_splits_the_model_runs_between_its_pieces(
    folder: Path, multiplied: list[Any]
) -> None:
    keys = ["unified_kv_cache_update", "unified_mla_kv_cache_update"]
    attention = ["unified_attention_with_output", *keys]
    splitting = [f"vllm::{name}" for name in (*attention, "inference_guard_fault")]
    came = run(
        folder,
        _asked(),
        config=None,
        runner="v2",
        hook="tests.vllm.emulation.faults:by_branch",
        graphs="PIECEWISE",
        compilation_config={"splitting_ops": splitting},
    )
    assert _tokens(came) == multiplied
    (worker,) = came["workers"]
    assert worker["looked_into"] == 0 and worker["replayed"]["pieces"] > 50
