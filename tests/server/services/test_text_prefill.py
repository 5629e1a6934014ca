"""Long prompts of a text service: read in parts, between which other rows join and go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guard.errors import ContentBlocked, ServiceStopped
from server.errors import EngineFailed
from server.services.interface import RowEvents
from tests.server.running_service import run, until
from tests.server.services.text_driver import Answer, answers, batch, read, request
from tests.server.tiny_text_service import RunningText, TinyTextModel

PART = 16
LONG = "a long story about nothing at all, " * 5


@pytest.fixture
def running(tiny_model: TinyTextModel, tmp_path: Path) -> Iterator[RunningText]:
    limits = {"max_batch": 4, "queue_limit": 8, "max_prefill_tokens": PART}
    with tiny_model.serve(tmp_path, **limits) as running:
        yield running


@pytest.fixture
def forwards(running: RunningText) -> list[tuple[int, int]]:
    """The `[rows, tokens]` of every forward from now on."""
    shapes: list[tuple[int, int]] = []

    def record(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    running.engine._run._model.register_forward_pre_hook(record, with_kwargs=True)
    return shapes


def content(answer: Answer) -> tuple[str, list[int]]:
    return answer.text, [token.token_id for token in answer.tokens]


@pytest.mark.parametrize("policy", ["none", "steer-always", "block-always", "steer-late"])
def test_answers_and_verdicts_are_those_of_the_whole_prompt(
    running: RunningText, shared: RunningText, policy: str
) -> None:
    whole, in_parts = (
        answers(service, request(service, policy, LONG), request(service, "none", "hi"))
        for service in (shared, running)
    )
    assert [content(answer) for answer in in_parts] == [content(answer) for answer in whole]
    if policy == "block-always":
        assert isinstance(in_parts[0].end, ContentBlocked)
        verdicts = [answer.end.verdict for answer in (whole[0], in_parts[0])]  # type: ignore[union-attr]
    else:
        verdicts = [answer.finished.verdict for answer in (whole[0], in_parts[0])]
        assert in_parts[0].finished.prompt_tokens > 10 * PART
    for one, other in zip(verdicts[0].guards, verdicts[1].guards, strict=True):
        assert (one.fired, one.action, one.position) == (other.fired, other.action, other.position)
        assert one.score == pytest.approx(other.score, abs=1e-3)


def test_no_forward_reads_more_prompt_tokens_than_the_bound(
    running: RunningText, forwards: list[tuple[int, int]]
) -> None:
    texts = ["hi", LONG, "x" * 12, "", LONG, "short", "y" * 13, "z"]
    served = answers(running, *(request(running, text=text, max_tokens=3) for text in texts))
    assert all(answer.finished.reason == "length" for answer in served)
    assert max(rows * tokens for rows, tokens in forwards) <= PART
    assert any(rows > 1 and tokens > 1 for rows, tokens in forwards), "prompts still join together"


def test_a_row_gets_a_token_between_any_two_parts_of_anothers_prompt(
    running: RunningText, forwards: list[tuple[int, int]]
) -> None:
    async def both() -> None:
        (first,) = running.service.submit([request(running, max_tokens=60)])
        await first.__anext__()
        (second,) = running.service.submit([request(running, text=LONG)])
        await asyncio.gather(read(first), read(second))

    run(both)
    kinds = ["part" if tokens > 1 else "token" for _, tokens in forwards]
    parts = [i for i, kind in enumerate(kinds) if kind == "part"][1:]  # without the first prompt
    assert len(parts) > 10
    assert all(kinds[i + 1] == "token" for i in parts)


def test_short_prompts_do_not_wait_for_a_long_one(
    running: RunningText, forwards: list[tuple[int, int]]
) -> None:
    async def overtake() -> None:
        long = running.service.submit([request(running, text=LONG, max_tokens=1) for _ in "ab"])
        await until(lambda: len(forwards) > 1)
        ended = []
        for text in "pqrs":
            (short,) = running.service.submit([request(running, text=text, max_tokens=1)])
            await read(short)
            ended.append(text)
        tasks = [asyncio.create_task(read(events)) for events in long]
        assert not any(task.done() for task in tasks)
        assert len(ended) == 4
        await asyncio.gather(*tasks)

    running.engine.pace_s = 0.005
    run(overtake)


def test_short_prompts_do_not_keep_a_long_one_from_being_read(running: RunningText) -> None:
    async def flood() -> None:
        long = asyncio.create_task(
            read(running.service.submit([request(running, text=LONG, max_tokens=1)])[0])
        )
        for _ in range(40):
            if long.done():
                break
            await batch(running, [request(running, text="x", max_tokens=1)] * 2)
        assert long.done() and long.result().finished.reason == "length"

    run(flood)


def test_many_long_prompts_of_one_client_keep_another_waiting_for_one(
    running: RunningText, forwards: list[tuple[int, int]]
) -> None:
    ended = []

    async def tell(name: str, events: RowEvents) -> None:
        await read(events)
        ended.append(name)

    async def both() -> None:
        mine = request(running, text=LONG, max_tokens=1)
        copies = [replace(mine, request_id=f"{i}", tenant="hoarder") for i in range(5)]
        rows = [("hoarder", events) for events in running.service.submit(copies)]
        rows += [("other", running.service.submit([mine])[0])]
        await asyncio.gather(*(tell(name, events) for name, events in rows))

    run(both)
    assert ended[:2] == ["hoarder", "other"] and len(ended) == 6


def test_a_disconnect_in_the_middle_of_a_prompt_frees_its_place(
    running: RunningText, forwards: list[tuple[int, int]]
) -> None:
    async def disconnect() -> None:
        running.engine.pace_s = 0.01
        (long,) = running.service.submit([request(running, "steer-always", LONG)])
        await until(lambda: len(forwards) > 2)
        running.engine.go.clear()
        await until(running.engine.stalled.is_set)
        steps = running.engine.steps
        await long.aclose()
        running.engine.go.set()
        await until(lambda: len(running.verdicts) == 1)
        assert running.engine.steps == steps and running.engine.rows == 0
        served = await batch(running, [request(running, text=LONG), *[request(running)] * 3])
        assert all(answer.finished.reason == "length" for answer in served)

    run(disconnect)
    (guard,) = running.verdicts[0].guards
    assert not guard.fired
    assert len(running.audit()) == 5


def test_a_part_that_fails_loses_its_batch_and_nothing_else(
    running: RunningText, forwards: list[tuple[int, int]]
) -> None:
    before = answers(running, request(running, text=LONG))[0].content

    async def fail() -> None:
        running.engine.pace_s = 0.005
        forwards.clear()
        (long,) = running.service.submit([request(running, text=LONG)])
        await until(lambda: len(forwards) > 2)
        running.engine.faults.append(RuntimeError("the device is full"))
        assert isinstance((await read(long)).end, EngineFailed)

    run(fail)
    assert answers(running, request(running, text=LONG))[0].content == before


def test_closing_ends_a_prompt_that_is_being_read(
    running: RunningText, forwards: list[tuple[int, int]]
) -> None:
    async def close() -> None:
        running.engine.pace_s = 0.005
        (long,) = running.service.submit([request(running, text=LONG)])
        await until(lambda: len(forwards) > 2)
        running.service.close()
        assert isinstance((await read(long)).end, ServiceStopped)

    run(close)
    assert len(running.verdicts) == 1
