"""Guarded requests beside KV connectors, which exchange the keys of prompts with other engines."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from vllm import SamplingParams  # noqa: E402
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput  # noqa: E402

from steering.engines.vllm.connectors import LOCAL, leave_out, unfollowed_connector  # noqa: E402
from tests.steering.tiny import prompt  # noqa: E402
from tests.vllm.driver import alone, drawn, run  # noqa: E402

WHOLE = {"max_num_batched_tokens": 2048}
"""The store does not take prompts that are read in parts: it then fails by itself."""


def storing(at: Path) -> dict[str, Any]:
    """Engine settings with vLLM's own store of keys in files, in a folder."""
    settings = {"shared_storage_path": str(at)}
    return WHOLE | {
        "kv_transfer_config": {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": settings,
        }
    }


def test_a_store_holds_no_steered_keys_and_serves_none_to_guards(
    folder: Path, tmp_path: Path
) -> None:
    prompts = [prompt(100, seed=i) for i in range(6)]
    guarded = [
        {"prompt": one, "tokens": 6, "policy": policy}
        for one in prompts
        for policy in ("both", "watch")
    ]
    bare = [{"prompt": one, "tokens": 6, "policy": "none"} for one in prompts]
    plain = run(folder, guarded, bare, **WHOLE)["phases"]
    # each phase starts with an empty cache of prefixes: what is cached then is from the store
    phases = run(folder, guarded, bare, bare, guarded, **storing(tmp_path))["phases"]
    first, filling, loaded, again = phases
    assert [one["tokens"] for one in filling] == [one["tokens"] for one in plain[1]]
    assert all(one["cached"] == 0 for one in filling), "guarded requests have filled the store"
    assert all(one["cached"] == 96 for one in loaded)
    assert [one["tokens"] for one in loaded] == [one["tokens"] for one in plain[1]]
    for came in (first, again):
        assert all(one["cached"] == 0 for one in came)
        assert [one["tokens"] for one in came] == [one["tokens"] for one in plain[0]]
        for one, other in zip(came, plain[0], strict=True):
            assert one["guard"]["outcome"] == other["guard"]["outcome"]
            for seen, expected in zip(
                one["guard"]["guards"], other["guard"]["guards"], strict=True
            ):
                assert seen["score"] == pytest.approx(expected["score"], rel=1e-4)
    assert "steered" in {one["guard"]["outcome"] for one in first}


def test_a_store_changes_nothing_of_a_crowded_batch(folder: Path, tmp_path: Path) -> None:
    asked = [alone(own) | {"at": i // 3} for i, own in enumerate(drawn(40, seed=9))]
    crowded = {"num_gpu_blocks_override": 14, "scheduling_policy": "priority"}
    plain = run(folder, asked, **crowded, **WHOLE)
    stored = run(folder, asked, **crowded, **storing(tmp_path))
    assert stored["preempted"] > 2
    (one,), (other,) = plain["phases"], stored["phases"]
    assert [own["tokens"] for own in one] == [own["tokens"] for own in other]
    assert [own["guard"]["outcome"] for own in one] == [own["guard"]["outcome"] for own in other]


@pytest.mark.parametrize(
    ("name", "path", "refused"),
    [
        ("ExampleConnector", None, None),
        # they copy later than in the forward
        ("OffloadingConnector", None, "OffloadingConnector"),
        ("MultiConnector", None, "MultiConnector"),
        # of that name, but somebody else's
        ("ExampleConnector", "their.module", "their.module.ExampleConnector"),
    ],
)
def test_connectors_that_are_not_followed_are_named(
    name: str, path: str | None, refused: str | None
) -> None:
    transfer = SimpleNamespace(kv_connector=name, kv_connector_module_path=path)
    assert unfollowed_connector(SimpleNamespace(kv_transfer_config=transfer)) == refused


def test_an_engine_without_connector_is_followed() -> None:
    assert unfollowed_connector(SimpleNamespace(kv_transfer_config=None)) is None


class Connector:
    """Notes what a scheduler tells it."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_new_request(self, request: Any) -> None:
        self.told.append(request.req_id)

    def get_num_new_matched_tokens(self, request: Any, computed: int) -> tuple[int, bool]:
        return 64 - computed, False

    def update_state_after_alloc(self, request: Any, blocks: Any, external: int) -> None:
        self.told.append(request.req_id)

    def request_finished(self, request: Any, blocks: Any) -> tuple[bool, Any]:
        return True, {"sent": request.req_id}

    def build_connector_meta(self, scheduled: SchedulerOutput) -> SchedulerOutput:
        return scheduled


class Request:
    def __init__(self, name: str, extra: dict[str, Any] | None) -> None:
        self.req_id, self.sampling_params = name, SamplingParams(extra_args=extra)


def scheduled(new: list[Request], cached: list[str], finished: set[str]) -> SchedulerOutput:
    made = SchedulerOutput.make_empty()
    made.scheduled_new_reqs = new  # type: ignore[assignment]
    made.scheduled_cached_reqs = CachedRequestData(
        req_ids=cached,
        resumed_req_ids=set(cached[:1]),
        new_token_ids=[],
        all_token_ids={name: [1] for name in cached},
        new_block_ids=[([i],) for i in range(len(cached))],
        num_computed_tokens=[*range(len(cached))],
        num_output_tokens=[*range(len(cached))],
    )
    made.num_scheduled_tokens = {name: 2 for name in (*(each.req_id for each in new), *cached)}
    made.total_num_scheduled_tokens = sum(made.num_scheduled_tokens.values())
    made.finished_req_ids = finished
    return made


def test_a_scheduler_tells_its_connector_of_no_guarded_request() -> None:
    connector = Connector()
    leave_out(connector)
    guarded, open_, unsaid = (
        Request("g", {LOCAL: True}),
        Request("o", {LOCAL: False}),
        Request("u", None),
    )
    for request in (guarded, open_, unsaid):
        connector.on_new_request(request)
        connector.update_state_after_alloc(request, None, 0)
    assert connector.told == ["o", "o"]
    assert connector.get_num_new_matched_tokens(guarded, 0) == (0, False)
    assert connector.get_num_new_matched_tokens(open_, 32) == (32, False)
    assert connector.request_finished(guarded, [1]) == (False, None)
    assert connector.request_finished(open_, [1]) == (True, {"sent": "o"})

    first = scheduled([guarded, open_, unsaid], [], set())
    assert connector.build_connector_meta(first).num_scheduled_tokens == {"o": 2}
    assert [new.req_id for new in first.scheduled_new_reqs] == ["g", "o", "u"]  # not changed
    later = connector.build_connector_meta(scheduled([], ["g", "o", "u"], set()))
    assert later.scheduled_cached_reqs.req_ids == ["o"]
    assert later.scheduled_cached_reqs.new_block_ids == [([1],)]
    assert later.scheduled_cached_reqs.num_computed_tokens == [1]
    assert later.scheduled_cached_reqs.resumed_req_ids == set()
    assert later.total_num_scheduled_tokens == 2
    # a name that has ended may be given again
    reused = connector.build_connector_meta(scheduled([Request("g", {LOCAL: False})], [], {"g"}))
    assert [new.req_id for new in reused.scheduled_new_reqs] == ["g"]
