"""Requests to a running text service, and their answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from guard.errors import GuardError
from server.services.interface import (
    FinishedText,
    RowEvents,
    SamplingParams,
    TextRowRequest,
    TokenLogprob,
)
from tests.server.running_service import run
from tests.server.tiny_text_service import RunningText

CAPACITY, QUEUE = 4, 3


def request(
    running: RunningText,
    policy: str = "none",
    text: str = "hello",
    *,
    streamed: bool = False,
    **options: Any,
) -> TextRowRequest:
    sampling = {"max_tokens": 16, "temperature": 0.0, "top_logprobs": 3} | options
    return TextRowRequest(
        request_id=f"{policy}:{text[:20]}",
        prompt=running.service.encode_chat([{"role": "user", "content": text}]),
        policy=policy,
        sampling=SamplingParams(**sampling),
        tenant="acme",
        streamed=streamed,
    )


@dataclass
class Answer:
    """All text and tokens of a row, and its last event or its error; `said` is the part of the text
    that is the policy's message."""

    text: str
    tokens: list[TokenLogprob]
    end: FinishedText | GuardError
    said: str = ""

    @property
    def content(self) -> tuple[str, list[TokenLogprob]]:
        return self.text, self.tokens

    @property
    def finished(self) -> FinishedText:
        assert isinstance(self.end, FinishedText)
        return self.end


async def read(events: RowEvents) -> Answer:
    answer = Answer("", [], GuardError("the row has not ended"))
    try:
        async for event in events:
            if isinstance(event, FinishedText):
                answer.end = event
            else:
                answer.text += event.text
                answer.tokens += event.tokens
                answer.said += event.text if event.said else ""
    except GuardError as error:
        answer.end = error
    return answer


async def batch(running: RunningText, requests: list[TextRowRequest]) -> list[Answer]:
    """The answers of requests that run as one batch from the first token on."""
    return await asyncio.gather(*map(read, running.service.submit(requests)))


def answers(running: RunningText, *requests: TextRowRequest) -> list[Answer]:
    """`batch` on a new event loop."""
    return run(lambda: batch(running, list(requests)))
