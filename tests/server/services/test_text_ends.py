"""The end of text rows: cancellation, failures, a service that stops, records."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from guard.errors import ServiceStopped
from server.errors import EngineFailed
from server.services.text_rows import TokenText
from tests.server.running_service import run, until
from tests.server.services.text_driver import CAPACITY, QUEUE, answers, read, request
from tests.server.tiny_text_service import RunningText


def test_a_disconnect_frees_the_place_at_once(running: RunningText) -> None:
    async def disconnect() -> None:
        running.engine.go.clear()
        running.engine.pace_s = 0.01
        (first,) = running.service.submit([request(running, text="first", max_tokens=200)])
        await until(running.engine.stalled.is_set)
        waiting = running.service.submit([request(running) for _ in range(CAPACITY + QUEUE - 1)])
        await waiting[-1].aclose()  # still in the queue, engine stalled
        assert len(running.verdicts) == 1
        added = running.service.submit([request(running)])
        with pytest.raises(StopAsyncIteration):
            await waiting[-1].__anext__()
        running.engine.go.set()
        await first.__anext__()
        await first.aclose()
        await first.aclose()
        for answer in await asyncio.gather(*map(read, [*waiting[:-1], *added])):
            assert answer.finished.completion_tokens == 16
        await until(lambda: running.engine.rows == 0)

    run(disconnect)
    counts = Counter(verdict.request_id for verdict in running.verdicts)
    assert counts == {"none:first": 1, "none:hello": CAPACITY + QUEUE}
    assert len(running.audit()) == CAPACITY + QUEUE + 1


def test_a_cancelled_row_is_not_computed_to_its_end(running: RunningText) -> None:
    async def disconnect() -> None:
        running.engine.pace_s = 0.02  # it must not have ended by itself
        (events,) = running.service.submit([request(running, max_tokens=200)])
        await events.__anext__()
        running.engine.go.clear()
        await until(running.engine.stalled.is_set)
        steps = running.engine.steps
        await events.aclose()
        running.engine.go.set()
        await until(lambda: running.engine.rows == 0)
        assert running.engine.steps == steps and len(running.verdicts) == 1

    run(disconnect)


def test_an_answer_of_which_no_more_is_wanted_ends_as_behind_a_stop_string(
    running: RunningText,
) -> None:
    async def ended() -> None:
        running.engine.pace_s = 0.01
        rows = running.service.submit([request(running, max_tokens=200) for _ in range(2)])
        await rows[0].__anext__()
        rows[0].end()
        first, other = await asyncio.gather(*map(read, rows))
        assert first.finished.reason == "stop" and first.finished.completion_tokens < 100
        assert other.finished.completion_tokens == 200

    run(ended)
    assert [verdict.outcome for verdict in running.verdicts] == ["pass", "pass"]


@pytest.mark.parametrize("step", ["prefill", "decode"])
def test_a_step_that_fails_loses_its_batch_and_nothing_else(
    running: RunningText, step: str
) -> None:
    before = answers(running, request(running, "steer-never"))[0].content
    running.verdicts.clear()

    async def fail() -> None:
        if step == "decode":
            active = running.service.submit([request(running, "steer-never", max_tokens=200)] * 2)
            await active[0].__anext__()
        running.engine.go.clear()
        running.engine.stalled.clear()
        if step == "prefill":
            active = running.service.submit([request(running, "steer-never")])
        await until(running.engine.stalled.is_set)
        waiting = running.service.submit([request(running, "steer-never")] * QUEUE)
        running.engine.faults.append(RuntimeError("secret of the device"))
        running.engine.go.set()
        for lost in await asyncio.gather(*map(read, active)):
            assert isinstance(lost.end, EngineFailed)
            assert "secret" not in lost.end.message
            assert lost.end.verdict is not None and lost.end.verdict.outcome == "error"
        for served in await asyncio.gather(*map(read, waiting)):
            assert served.text == before[0]
        assert len(running.verdicts) == len(active) + len(waiting)

    run(fail)
    assert running.service.ready()


def test_an_engine_that_cannot_be_reset_stops_the_service(running: RunningText) -> None:
    async def die() -> None:
        running.engine.go.clear()
        (active,) = running.service.submit([request(running)])
        await until(running.engine.stalled.is_set)
        (waiting,) = running.service.submit([request(running)])
        running.engine.reset_fault = RuntimeError("the device is gone")
        running.engine.faults.append(RuntimeError("the device is gone"))
        running.engine.go.set()
        assert isinstance((await read(active)).end, EngineFailed)
        assert isinstance((await read(waiting)).end, ServiceStopped)
        await until(lambda: not running.service.ready())
        with pytest.raises(ServiceStopped):
            running.service.submit([request(running)])

    run(die)
    assert [verdict.outcome for verdict in running.verdicts] == ["error", "error"]


def test_closing_ends_every_row_with_its_verdict_and_leaves_the_model_as_it_was(
    running: RunningText,
) -> None:
    assert running.engine.hooks() > 0

    async def close() -> None:
        active = running.service.submit(
            [request(running, "steer-never", max_tokens=200)] * CAPACITY
        )
        await active[0].__anext__()
        running.engine.stalled.clear()
        running.engine.go.clear()
        await until(running.engine.stalled.is_set)
        waiting = running.service.submit([request(running, "steer-never")] * QUEUE)
        asyncio.get_running_loop().run_in_executor(None, running.engine.go.set)
        running.service.close()
        running.service.close()
        for answer in await asyncio.gather(*map(read, [*active, *waiting])):
            assert isinstance(answer.end, ServiceStopped)
            assert answer.end.verdict is not None and answer.end.verdict.outcome == "error"
            assert answer.end.verdict in running.verdicts
        with pytest.raises(ServiceStopped):
            running.service.submit([request(running)])

    run(close)
    assert not running.service.ready() and running.engine.hooks() == 0
    scores = [verdict.guards[0].score for verdict in running.verdicts]
    assert [score is None for score in scores] == [False] * CAPACITY + [True] * QUEUE
    assert len(running.audit()) == CAPACITY + QUEUE


def test_a_record_that_cannot_be_kept_does_not_stop_the_engine(
    running: RunningText, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise RuntimeError("nowhere to put it")

    monkeypatch.setattr(running.service, "_record", full)
    first, second = answers(running, request(running), request(running, "steer-always"))
    assert first.finished.reason == second.finished.reason == "length"
    assert answers(running, request(running))[0].text == first.text


def test_an_error_in_the_text_of_one_row_fails_that_row_alone(
    running: RunningText, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = TokenText.push

    def picky(self: TokenText, token: int) -> tuple[str, str | None]:
        if self._stop == ("odd",):
            raise ValueError("this tokenizer cannot")
        return push(self, token)

    monkeypatch.setattr(TokenText, "push", picky)
    lost, kept = answers(running, request(running, stop=("odd",)), request(running))
    assert isinstance(lost.end, EngineFailed)
    assert kept.finished.completion_tokens == 16


def test_a_closed_event_loop_does_not_stop_the_engine(running: RunningText) -> None:
    async def leave() -> None:
        running.service.submit([request(running, max_tokens=100)])

    run(leave)
    assert answers(running, request(running))[0].finished.completion_tokens == 16
    # the row without a reader ends by itself, with its verdict
    run(lambda: until(lambda: len(running.verdicts) == 2))
