"""Image rows that join and leave a running batch, failures, a service that stops."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from guard.errors import ServiceStopped
from server.errors import EngineFailed
from server.services.interface import GeneratedImage
from tests.guard.toy_images import CONCEPT, STUBBORN
from tests.server.running_service import run, until
from tests.server.services.image_driver import CAPACITY, QUEUE, outcome, outcomes, request, same
from tests.server.toy_image_service import RunningImages


def test_a_request_joins_between_two_steps_and_leaves_before_the_others(
    images: RunningImages,
) -> None:
    async def stagger() -> None:
        images.engine.pace_s = 0.005
        (long,) = images.service.submit([request(steps=60)])
        await until(lambda: images.engine.steps >= 3)
        (short,) = images.service.submit([request(steps=2)])
        assert isinstance(await outcome(short), GeneratedImage)
        assert not long.ended and images.engine.steps < 60
        assert isinstance(await outcome(long), GeneratedImage)
        assert images.engine.steps == 60, "the two have shared their steps"

    run(stagger)


def test_a_disconnect_ends_its_row_at_the_next_step_and_no_other(
    images: RunningImages,
) -> None:
    async def disconnect() -> None:
        images.engine.pace_s = 0.005
        rows = images.service.submit(
            [request("first", steps=400), request("b", steps=30), request(steps=40)]
        )
        await until(lambda: images.engine.steps >= 3)
        images.engine.go.clear()
        images.engine.stalled.clear()
        await until(images.engine.stalled.is_set)
        waiting = images.service.submit([request("late")])
        await waiting[0].aclose()  # still in the queue: at once
        assert len(images.verdicts) == 1
        await rows[0].aclose()
        await rows[0].aclose()
        steps = images.engine.steps
        images.engine.go.set()
        await until(lambda: images.engine.rows == 2)
        assert images.engine.steps <= steps + 2
        ends = await asyncio.gather(*map(outcome, rows[1:]))
        assert all(isinstance(end, GeneratedImage) for end in ends)
        await until(lambda: images.engine.rows == 0)
        assert images.engine.steps < 100

    run(disconnect)
    counts = Counter(verdict.request_id for verdict in images.verdicts)
    assert counts == {"none:first": 1, "none:b": 1, "none:a cat": 1, "none:late": 1}
    assert len(images.audit()) == 4


def test_an_image_is_the_same_in_any_batch(images: RunningImages) -> None:
    (alone,) = outcomes(images, request(seed=3))
    company = outcomes(
        images,
        request(f"a {CONCEPT}", "block-knife"),
        request(f"a {STUBBORN}", "replace-knife", steps=2),
        request(seed=3),
        request("x", steps=1),
    )
    assert same(company[2], alone)
    assert not same(outcomes(images, request(seed=4))[0], alone)


@pytest.mark.parametrize("step", ["start", "step", "images"])
def test_a_step_that_fails_loses_its_batch_and_nothing_else(
    images: RunningImages, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        images.engine.go.clear()
        active = images.service.submit([request(policy="refine-knife")] * 2)
        await until(images.engine.stalled.is_set)
        fault = RuntimeError("secret of the device")
        if step == "images":

            def broken(rows: Any) -> Any:
                monkeypatch.undo()
                raise fault

            monkeypatch.setattr(images.engine, "images", broken)
        elif step == "start":
            images.engine.faults.append(fault)
        else:
            real = images.engine.step

            def broken_step() -> Any:
                monkeypatch.undo()
                images.engine.faults.append(fault)
                return real()

            monkeypatch.setattr(images.engine, "step", broken_step)
        waiting = images.service.submit([request(policy="refine-knife")] * QUEUE)
        if step != "start":  # those that wait join only what is left
            images.engine.capacity = 2
        images.engine.go.set()
        for lost in await asyncio.gather(*map(outcome, active)):
            assert isinstance(lost, EngineFailed) and "secret" not in lost.message
            assert lost.verdict is not None and lost.verdict.outcome == "error"
        for served in await asyncio.gather(*map(outcome, waiting)):
            assert isinstance(served, GeneratedImage)
        assert len(images.verdicts) == len(active) + len(waiting)

    run(fail)
    assert images.service.ready()


def test_an_engine_that_cannot_be_reset_stops_the_service(images: RunningImages) -> None:
    async def die() -> None:
        images.engine.go.clear()
        (active,) = images.service.submit([request()])
        await until(images.engine.stalled.is_set)
        (waiting,) = images.service.submit([request()])
        images.engine.reset_fault = RuntimeError("the device is gone")
        images.engine.faults.append(RuntimeError("the device is gone"))
        images.engine.go.set()
        assert isinstance(await outcome(active), EngineFailed)
        assert isinstance(await outcome(waiting), ServiceStopped)
        await until(lambda: not images.service.ready())
        with pytest.raises(ServiceStopped):
            images.service.submit([request()])

    run(die)
    assert [verdict.outcome for verdict in images.verdicts] == ["error", "error"]


def test_closing_ends_every_row_with_its_verdict(images: RunningImages) -> None:
    async def close() -> None:
        images.engine.pace_s = 0.005
        active = images.service.submit([request(policy="refine-knife", steps=400)] * CAPACITY)
        await until(lambda: images.engine.steps >= 2)
        images.engine.stalled.clear()
        images.engine.go.clear()
        await until(images.engine.stalled.is_set)
        waiting = images.service.submit([request(policy="refine-knife")] * QUEUE)
        asyncio.get_running_loop().run_in_executor(None, images.engine.go.set)
        images.service.close()
        images.service.close()
        for ended in await asyncio.gather(*map(outcome, [*active, *waiting])):
            assert isinstance(ended, ServiceStopped)
            assert ended.verdict is not None and ended.verdict.outcome == "error"
            assert ended.verdict in images.verdicts
        with pytest.raises(ServiceStopped):
            images.service.submit([request()])

    run(close)
    assert not images.service.ready() and images.engine.closed
    scores = [verdict.guards[0].score for verdict in images.verdicts]
    assert [score is None for score in scores] == [False] * CAPACITY + [True] * QUEUE
    assert len(images.audit()) == CAPACITY + QUEUE


def test_a_record_that_cannot_be_kept_does_not_stop_the_engine(
    images: RunningImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise RuntimeError("nowhere to put it")

    monkeypatch.setattr(images.service, "_record", full)
    assert all(isinstance(end, GeneratedImage) for end in outcomes(images, request(), request("b")))
