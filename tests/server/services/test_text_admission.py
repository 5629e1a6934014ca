"""Admission of text rows: policies, prompts, context length and a full queue."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from guard.errors import (
    ContextExceeded,
    GuardError,
    PolicyUnfit,
    RequestError,
    TooManyRequests,
    UnknownPolicy,
)
from server.services.interface import FinishedText, SamplingParams, TextRowRequest
from steering.prompt import Media, Prompt
from tests.server.running_service import run, until
from tests.server.services.text_driver import CAPACITY, QUEUE, read, request
from tests.server.tiny_text_service import RunningText


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (UnknownPolicy, {"policy": "ghost"}),
        (PolicyUnfit, {"policy": "steer-drawn"}),
        (ContextExceeded, {"max_tokens": 250}),
        (ContextExceeded, {"text": "x" * 300}),
    ],
)
def test_requests_that_cannot_run_are_refused_without_a_verdict(
    shared: RunningText, error: type[GuardError], fault: dict[str, Any]
) -> None:
    before = len(shared.verdicts)

    async def refused() -> None:
        shared.service.submit([request(shared), request(shared, **fault)])

    with pytest.raises(error):
        run(refused)
    assert len(shared.verdicts) == before and shared.service.queued() == 0


def test_token_ids_that_the_model_does_not_have_are_refused(shared: RunningText) -> None:
    async def submit(token: int) -> None:
        row = TextRowRequest("r", Prompt((5, token)), "none", SamplingParams(1))
        (events,) = shared.service.submit([row])
        assert isinstance((await read(events)).end, FinishedText)

    size = len(shared.service._encoder.tokenizer)
    run(lambda: submit(size - 1))
    for token in (size, 2**31 - 1):
        with pytest.raises(RequestError) as caught:
            run(lambda token=token: submit(token))
        assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt((5, 6), (Media("image", np.zeros((2, 2, 3), np.uint8), 0, 1),)),
        Prompt((5, 6), positions=((0, 1), (0, 0), (0, 0))),
    ],
)
def test_a_prompt_of_more_than_text_is_refused(shared: RunningText, prompt: Prompt) -> None:
    before = len(shared.verdicts)

    async def submit() -> None:
        shared.service.submit([replace(request(shared), prompt=prompt)])

    with pytest.raises(RequestError, match="leave them out") as caught:
        run(submit)
    assert caught.value.param == "prompt" and len(shared.verdicts) == before


def test_messages_that_the_template_refuses_are_a_bad_request(shared: RunningText) -> None:
    with pytest.raises(RequestError, match="no system here") as caught:
        shared.service.encode_chat([{"role": "system", "content": "x"}])
    assert caught.value.param == "messages"


def test_a_full_queue_refuses_exactly_the_rows_that_do_not_fit(running: RunningText) -> None:
    async def overflow() -> None:
        running.engine.go.clear()
        streams = [*running.service.submit([request(running)])]
        await until(running.engine.stalled.is_set)  # the first is in the batch, not in the queue
        places = CAPACITY + QUEUE - 1
        streams += [running.service.submit([request(running)])[0] for _ in range(places - 1)]
        with pytest.raises(TooManyRequests) as caught:
            running.service.submit(
                [request(running), request(running)]
            )  # one of them would fit: all or none
        assert caught.value.retry_after > 0
        streams += running.service.submit([request(running)])
        with pytest.raises(TooManyRequests):
            running.service.submit([request(running)])
        assert running.service.queued() == places
        running.engine.go.set()
        answers = await asyncio.gather(*map(read, streams))
        assert {answer.finished.reason for answer in answers} == {"length"}
        assert running.service.queued() == 0
        again = running.service.submit([request(running) for _ in range(CAPACITY + QUEUE)])
        await asyncio.gather(*map(read, again))

    run(overflow)
    assert len(running.verdicts) == 2 * (CAPACITY + QUEUE)
