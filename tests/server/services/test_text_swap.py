"""Other plans for a running text service: rows keep their guards, later requests get the new."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guard.artifact import Artifact
from guard.config.schema import Config, GuardConfig
from guard.errors import ArtifactError, ServiceStopped
from guard.plans.language import LanguagePlans
from server.errors import EngineFailed
from tests.server.running_service import run, until
from tests.server.services.text_driver import Answer, answers, read, request
from tests.server.tiny_text_service import (
    ALWAYS,
    RunningText,
    TinyTextModel,
    steer_meta,
    steer_tensors,
)

PART = 16
LONG = "a long story about nothing at all, " * 5
POLICIES = ("none", "steer-always", "steer-late", "observe-always")


@pytest.fixture
def running(tiny_model: TinyTextModel, tmp_path: Path) -> Iterator[RunningText]:
    limits = {"max_batch": 8, "queue_limit": 8, "max_prefill_tokens": PART}
    with tiny_model.serve(tmp_path, **limits) as running:
        # hooks on other layers than those of the guards that are there
        meta = steer_meta(
            tiny_model.fingerprint, sense_layers=[0], act_layers=[3], pool=3, threshold=ALWAYS
        )
        Artifact(meta, steer_tensors()).save(tmp_path / "extra.safetensors")
        yield running


def changed(running: RunningText, *, without: tuple[str, ...] = ()) -> Config:
    """Without some guards, and with one more in the policy steer-never."""
    config = running.config
    extra = GuardConfig(name="extra", artifact=running.folder / "extra.safetensors")
    policies = {
        name: policy.model_copy(
            update={"guards": tuple(guard for guard in policy.guards if guard not in without)}
        )
        for name, policy in config.policies.items()
    }
    never = policies["steer-never"]
    policies["steer-never"] = never.model_copy(update={"guards": (*never.guards, "extra")})
    guards = [guard for guard in config.guards if guard.name not in without]
    return config.model_copy(update={"guards": (*guards, extra), "policies": policies})


def plans_of(running: RunningText, config: Config) -> LanguagePlans:
    return LanguagePlans(config, running.service.plans.served, name="tiny")


def content(answer: Answer) -> tuple[str, list[int]]:
    return answer.text, [token.token_id for token in answer.tokens]


def verdict(answer: Answer) -> list[tuple[Any, ...]]:
    guards = answer.finished.verdict.guards
    return [(each.guard, each.fired, each.action, each.position) for each in guards]


@pytest.mark.parametrize("text", ["tell me a tale", LONG])
def test_rows_keep_their_guards_and_later_requests_get_the_new_ones(
    running: RunningText, shared: RunningText, tiny_model: TinyTextModel, text: str
) -> None:
    late = tiny_model.late.prompt
    expected = answers(
        shared, *(request(shared, p, late if p == "steer-late" else text) for p in POLICIES)
    )
    plans = plans_of(running, changed(running, without=("always", "late")))

    async def swapped() -> tuple[list[Answer], Answer]:
        running.engine.pace_s = 0.005
        rows = [
            request(running, policy, late if policy == "steer-late" else text)
            for policy in POLICIES
        ]
        before = [asyncio.ensure_future(read(events)) for events in running.service.submit(rows)]
        # in the middle of the long prompt, or of the answers
        await until(lambda: running.engine.steps >= 3)
        await asyncio.wrap_future(running.service.use(plans))
        assert not any(task.done() for task in before)
        (events,) = running.service.submit([request(running, "steer-never", "hello")])
        after = await read(events)
        return list(await asyncio.gather(*before)), after

    before, after = run(swapped)
    assert [content(answer) for answer in before] == [content(answer) for answer in expected]
    assert [verdict(answer) for answer in before] == [verdict(answer) for answer in expected]
    assert verdict(after) == [("never", False, "none", None), ("extra", True, "steer", 0)]
    # the guards that nobody has any more leave with the next step
    answers(running, request(running))
    assert {*running.engine._bank.index} == {*plans.guards}
    assert running.service.info.policies == plans.usable


def test_a_swap_needs_no_request(running: RunningText) -> None:
    hooks = running.engine.hooks()
    running.service.use(plans_of(running, changed(running))).result(10)
    assert running.engine.hooks() == hooks + 2
    (answer,) = answers(running, request(running, "steer-never"))
    assert verdict(answer)[1] == ("extra", True, "steer", 0)
    running.service.use(plans_of(running, running.config)).result(10)
    (answer,) = answers(running, request(running, "steer-never"))
    assert len(verdict(answer)) == 1 and running.engine.hooks() == hooks


def test_a_step_that_fails_keeps_the_new_guards(running: RunningText) -> None:
    running.service.use(plans_of(running, changed(running))).result(10)
    running.engine.faults.append(RuntimeError("broken"))
    (failed,) = answers(running, request(running, "steer-never"))
    assert isinstance(failed.end, EngineFailed)
    (answer,) = answers(running, request(running, "steer-never"))
    assert verdict(answer)[1] == ("extra", True, "steer", 0)


@pytest.mark.parametrize("fault", ["altered", "gone"])
def test_a_file_that_has_changed_since_does_not_slip_in(running: RunningText, fault: str) -> None:
    path = running.folder / "never.safetensors"
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes((running.folder / "always.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match="the artifacts of never have changed"):
        running.service.use(plans_of(running, changed(running)))
    (answer,) = answers(running, request(running, "steer-never"))
    assert verdict(answer) == [("never", False, "none", None)]


def test_a_service_that_has_stopped_takes_no_plans(running: RunningText) -> None:
    plans = plans_of(running, changed(running))
    running.service.close()
    with pytest.raises(ServiceStopped):
        running.service.use(plans).result(10)
