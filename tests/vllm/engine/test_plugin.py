"""Rows of the plugin in vLLM itself, on a small model of random weights: `make test-vllm`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from guard.config.schema import load_config
from guard.plans.language import LanguagePlans, ServedModel
from guard.plans.revision import Revision
from server.vllm.policies import salted  # noqa: E402
from steering.engines.transformers.engine import TransformersEngine
from steering.fingerprint import checkpoint_fingerprint, fingerprint  # noqa: E402
from tests.steering.engines.driver import ids, serve, start  # noqa: E402
from tests.steering.tiny import prompt  # noqa: E402
from tests.vllm.checkpoint import CONFIG, HALT, model, save_lora  # noqa: E402
from tests.vllm.driver import alone, drawn, run  # noqa: E402


@pytest.fixture(scope="module")
def requests() -> list[dict[str, Any]]:
    return drawn(200, seed=5)


CROWDED = {"num_gpu_blocks_override": 14, "scheduling_policy": "priority"}


@pytest.fixture(scope="module")
def mixed(folder: Path, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """All at once, with a cache of keys that is too small for them."""
    return run(folder, requests, **CROWDED)


def test_a_checkpoint_is_told_by_what_transformers_makes_of_it(folder: Path) -> None:
    assert checkpoint_fingerprint(folder / "model") == fingerprint(model())


def test_bare_rows_are_those_of_vllm_without_the_plugin(
    folder: Path, requests: list[dict[str, Any]], mixed: dict[str, Any]
) -> None:
    plain = [request | {"policy": None} for request in requests]
    without = run(folder, plain, config=None, **CROWDED)
    assert mixed["preempted"] > 10
    (came,), (bare,) = mixed["phases"], without["phases"]
    pairs = [
        (one["tokens"], other["tokens"])
        for request, one, other in zip(requests, came, bare, strict=True)
        if request["policy"] in (None, "none", "watch") and "aborted" not in request
    ]
    assert len(pairs) > 80
    assert all(one == other for one, other in pairs)


def test_guarded_rows_are_what_they_are_alone_and_in_transformers(
    folder: Path, requests: list[dict[str, Any]], mixed: dict[str, Any]
) -> None:
    whole = [(i, own) for i, own in enumerate(requests) if "aborted" not in own]
    single = run(folder, *([alone(own)] for _, own in whole))["phases"]
    served = model()
    plans = LanguagePlans(load_config(folder / "config.toml"), served, name="tiny")
    engine = TransformersEngine(served, plans.bank, capacity=1)
    fired = moved = 0
    for (i, own), (by_itself,) in zip(whole, single, strict=True):
        together, policy = mixed["phases"][0][i], own["policy"] or "none"
        assert together["tokens"] == by_itself["tokens"], own
        plan = plans[policy]
        (out,), (readings,) = serve(
            engine, [start(own["prompt"], plan.rows())], tokens=own["tokens"]
        )
        assert together["tokens"] == ids([out]), own
        if policy == "none":
            assert together["guard"]["guards"] == [] and together["guard"]["outcome"] == "pass"
            continue
        expected = plan.verdict(readings, request_id="", model="", elapsed_ms=0.0)
        told = {guard["guard"]: guard for guard in together["guard"]["guards"]}
        for guard in expected.guards:
            assert told[guard.guard]["position"] == guard.position
            assert told[guard.guard]["score"] == pytest.approx(guard.score, rel=1e-4)
            fired += guard.fired
        if expected.outcome == "steered":
            (plain,), _ = serve(engine, [start(own["prompt"], [])], tokens=own["tokens"])
            moved += ids([out]) != ids([plain])
    assert fired > 40 and moved > 20
    engine.close()


def test_prefixes_are_shared_among_equals_and_never_across_plans(
    folder: Path, way: Mapping[str, str]
) -> None:
    long = prompt(96, seed=77)

    def asked(policy: str | None, **more: Any) -> dict[str, Any]:
        return {"prompt": [*long, *prompt(4, seed=3)], "tokens": 6, "policy": policy, **more}

    first = [asked("both"), asked(None)]
    again = [asked("both", at=20), asked(None, at=20), asked("firm", at=20)]
    came = run(folder, [*first, *again], **way)["phases"][0]
    both, bare, both_again, bare_again, firm = came
    assert both_again["cached"] == bare_again["cached"] == 96
    assert firm["cached"] == 0
    assert both_again["tokens"] == both["tokens"] and bare_again["tokens"] == bare["tokens"]
    assert both_again["guard"]["guards"] == both["guard"]["guards"]


def test_a_prompt_whose_last_token_alone_is_computed_is_decided_on_as_a_whole(
    folder: Path, way: Mapping[str, str]
) -> None:
    asked = [
        {"prompt": prompt(97, seed=i), "tokens": 8, "policy": policy, "at": at}
        for at in (0, 30)
        for i in range(4)
        for policy in ("both", "stop", "watch", "none")
    ]
    came = run(folder, asked, num_gpu_blocks_override=80, **way)
    half = len(asked) // 2
    found = came["phases"][0]
    for first, again in zip(found[:half], found[half:], strict=True):
        assert again["cached"] == 96 and again["tokens"] == first["tokens"]
        told, alike = first["guard"]["guards"], again["guard"]["guards"]
        assert [own["position"] for own in told] == [own["position"] for own in alike]
        scores = [own["score"] for own in alike]
        assert [own["score"] for own in told] == pytest.approx(scores, rel=1e-4)
    assert {one["guard"]["outcome"] for one in found} == {"blocked", "steered", "pass"}
    # single tokens of prompts and of answers alike
    assert (came["workers"][0]["forwards"]["FULL"] > 10) == ("graphs" in way)


def test_nobody_can_ask_for_the_salt_of_another_plan(folder: Path) -> None:
    config = load_config(folder / "config.toml")
    served = ServedModel.of(model())
    own = salted(None, Revision(config, served, str(folder / "model")).entries["firm"].salt)
    long = prompt(96, seed=78)
    request = {"prompt": [*long, 5], "tokens": 4}
    poisoner = request | {"policy": "none", "salt": own}
    came = run(folder, [poisoner, request | {"policy": "firm", "at": 15}])["phases"][0]
    assert came[1]["cached"] == 0


def test_what_blocks_ends_without_a_token(
    folder: Path, requests: list[dict[str, Any]], way: Mapping[str, str]
) -> None:
    asked = [alone(own) | {"policy": "stop"} for own in requests[:12]]
    came = run(folder, asked, **way)["phases"][0]
    ends = {one["finish"] for one in came}
    assert ends == {"content_filter", "length"}
    for one in came:
        blocked = one["finish"] == "content_filter"
        assert one["tokens"][0] == [] if blocked else one["tokens"][0]
        assert one["guard"]["outcome"] == ("blocked" if blocked else "pass")


def test_a_guard_in_shadow_ends_and_changes_nothing(
    folder: Path, requests: list[dict[str, Any]]
) -> None:
    shadowed = CONFIG.replace('name = "firm"', 'name = "firm"\nshadow = true', 1)
    (folder / "shadow.toml").write_text(shadowed + HALT)
    asked = [
        alone(own) | {"policy": policy}
        for own in requests[:12]
        for policy in ("none", "stop", "firm")
    ]
    came = run(folder, asked, config="shadow.toml")["phases"][0]
    fired = 0
    for bare, stopped, steered in zip(came[::3], came[1::3], came[2::3], strict=True):
        assert stopped["tokens"] == steered["tokens"] == bare["tokens"]
        for one in (stopped, steered):
            assert one["guard"]["outcome"] == "pass"
            (guard,) = one["guard"]["guards"]
            assert guard["action"] == ("observe" if guard["fired"] else "none")
            fired += guard["fired"]
    assert fired > 4


def test_several_answers_to_one_prompt_are_guarded_alike(folder: Path) -> None:
    # V2 draws tokens with a kernel that does not run without a GPU
    came = run(folder, [{"prompt": prompt(30, 4), "tokens": 5, "policy": "both", "n": 3}])
    (one,) = came["phases"][0]
    assert len(one["tokens"]) == 3 and one["tokens"][0] == one["tokens"][1] == one["tokens"][2]
    assert [each["policy"] for each in one["guard"]] == ["both"] * 3


@pytest.mark.parametrize(
    "hostile", ["ghost", 7, ["none"], {"a": {"b": 1}}, "x" * 2_000_000, "", "none\x00"]
)
def test_a_policy_that_is_not_there_is_refused_alone(folder: Path, hostile: object) -> None:
    bad = {"prompt": [5, 6], "tokens": 2, "extra": {"guard_policy": hostile}}
    came = run(folder, [bad, {"prompt": [5, 6], "tokens": 2}])["phases"][0]
    assert "there is no policy" in came[0]["error"] and len(came[0]["error"]) < 400
    assert len(came[1]["tokens"][0]) == 2


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_drafts_change_nothing(folder: Path, method: str) -> None:
    # answers that repeat themselves are what drafts are right about
    asked = [
        {"prompt": prompt(6, seed=i) * 2, "tokens": 40, "policy": policy}
        for i in range(10)
        for policy in ("none", "both", "watch", "halt")
    ]
    (folder / "halt.toml").write_text(CONFIG + HALT, "utf-8")
    settings = {"method": method, "num_speculative_tokens": 3}
    if method == "ngram":
        settings |= {"prompt_lookup_min": 1, "prompt_lookup_max": 3}
    else:
        # it drafts for itself, unguarded: wrong only where a guard steers
        settings |= {"model": str(folder / "model")}
    (plain,) = run(folder, asked, config="halt.toml")["phases"]
    drafted = run(folder, asked, config="halt.toml", speculative_config=settings)
    assert drafted["accepted"] > 20
    for request, one, other in zip(asked, plain, drafted["phases"][0], strict=True):
        assert one["tokens"] == other["tokens"], request
        assert one["finish"] == other["finish"]
        for seen, again in zip(one["guard"]["guards"], other["guard"]["guards"], strict=True):
            assert seen["position"] == again["position"]
            assert seen["score"] == pytest.approx(again["score"], rel=1e-4)
    answers = {(one["finish"], bool(one["tokens"][0])) for one in plain}
    assert ("content_filter", True) in answers, "a guard should fire within an answer"


# the CPU build's adapters cannot be captured
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_steering_goes_together_with_lora(folder: Path, runner: str) -> None:
    tuned, merged = folder / "lora", save_lora(folder / "lora")
    asked = [
        {"prompt": prompt(20, seed=i), "tokens": 8, "policy": policy, "lora": str(tuned)}
        for i in range(8)
        for policy in ("none", "both")
    ]
    settings = {"enable_lora": True, "max_lora_rank": 8}
    (came,) = run(folder, asked, runner=runner, **settings)["phases"]
    plans = LanguagePlans(load_config(folder / "config.toml"), model(), name="tiny")
    engine = TransformersEngine(merged, plans.bank, capacity=1)
    untuned = TransformersEngine(model(), plans.bank, capacity=1)
    moved = steered = 0
    for own, one in zip(asked, came, strict=True):
        begun = [start(own["prompt"], plans[str(own["policy"])].rows())]
        (out,), (readings,) = serve(engine, begun, tokens=own["tokens"])
        assert one["tokens"] == ids([out]), own
        steered += any(reading.fired for reading in readings.values())
        moved += ids([out]) != ids(serve(untuned, begun, tokens=own["tokens"])[0])
    assert moved > 8 and steered > 2
    engine.close()
    untuned.close()


@pytest.mark.parametrize(
    "parallel", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}], ids=["tp", "pp"]
)
def test_workers_that_share_a_model_decide_alike(
    folder: Path,
    requests: list[dict[str, Any]],
    parallel: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a stage's buffers are made while it warms up
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "0")
    asked = [alone(own) for own in requests[:24]]
    (one,) = run(folder, asked)["phases"]
    settings = {**parallel, "distributed_executor_backend": "mp"}
    (shared,) = run(folder, asked, **settings, enforce_eager="tensor_parallel_size" in parallel)[
        "phases"
    ]
    assert [own["tokens"] for own in shared] == [own["tokens"] for own in one]
    for own, other in zip(shared, one, strict=True):
        told = [(guard["guard"], guard["position"]) for guard in own["guard"]["guards"]]
        assert told == [(guard["guard"], guard["position"]) for guard in other["guard"]["guards"]]


def test_prompt_logprobs_are_those_of_vllm(folder: Path, way: Mapping[str, str]) -> None:
    asked = [
        {"prompt": prompt(90, seed=i), "tokens": 3, "policy": "watch", "prompt_logprobs": 1}
        for i in range(3)
    ]
    (came,) = run(folder, asked, **way)["phases"]
    unguarded = [own | {"policy": None} for own in asked]
    (bare,) = run(folder, unguarded, config=None, **way)["phases"]
    assert [own["prompt_logprobs"] for own in came] == [own["prompt_logprobs"] for own in bare]
    assert all(len(own["prompt_logprobs"]) == 90 for own in came)


def test_what_is_compiled_without_guards_is_not_taken_with_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    # else nothing is compiled in earnest
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "0")
    asked = [{"prompt": prompt(30, seed=i), "tokens": 8, "policy": "both"} for i in range(6)]
    bare = [own | {"policy": None} for own in asked]
    (eager,) = run(folder, asked)["phases"]
    (before,) = run(folder, bare, config=None, enforce_eager=False)["phases"]
    (compiled,) = run(folder, asked, enforce_eager=False)["phases"]
    (after,) = run(folder, bare, config=None, enforce_eager=False)["phases"]
    assert [one["tokens"] for one in before] == [one["tokens"] for one in after]
    for one, other in zip(compiled, eager, strict=True):
        assert one["tokens"] == other["tokens"]
        told, alike = one["guard"]["guards"], other["guard"]["guards"]
        assert [own["position"] for own in told] == [own["position"] for own in alike]
    assert any(one["guard"]["outcome"] == "steered" for one in compiled)
