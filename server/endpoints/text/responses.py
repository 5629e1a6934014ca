"""`/v1/responses`: text rows in the schema of OpenAI's newer API, without tools or a store."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.endpoints.gateway import Gateway
from server.endpoints.openapi import body_of
from server.endpoints.text.answers import answer_of, message_of, refusal_of
from server.endpoints.text.conversations import chat_prompt
from server.error_shapes import SentStream
from server.observe.exchange import Exchange, exchange_of
from server.services.interface import FinishedText, TextDelta
from server.services.text_jobs import CollectedText, Usage
from server.wire.schemas.responses import ResponsesRequest
from server.wire.schemas.structured import PlainText

_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a response is incomplete, by the reason for which its row ended."""


@dataclass(slots=True)
class ResponsesReply:
    """A response object, or the events that build it; one object for each HTTP request."""

    names_events: ClassVar[bool] = True

    body: ResponsesRequest
    exchange: Exchange
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    item_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    number: int = -1
    """Of the last event."""
    texts: list[str] = field(default_factory=list)
    """Those that have been streamed."""
    opened: bool = False
    """Whether the text of a stream has begun: one of a given form may be a refusal instead."""

    def whole(self, rows: Sequence[CollectedText], usage: Usage) -> dict[str, Any]:
        """A `response` with its one message."""
        (row,) = rows
        refusal = self._refusal(row.finished)
        text, _ = answer_of(row, self.exchange)
        return self._ended(row.finished, _part(text) if refusal is None else _refusal_part(refusal))

    def opening(self, index: int) -> Sequence[dict[str, Any]]:
        """The response and its message have begun, and, unless it may yet be refused, its text."""
        response = self._response("in_progress", [])
        return [
            self._event("created", response=response),
            self._event("in_progress", response=response),
            self._event("output_item.added", output_index=0, item=self._item("in_progress", [])),
            *(self._open() if not self._structured else ()),
        ]

    def delta(self, index: int, delta: TextDelta) -> Sequence[dict[str, Any]]:
        """New text."""
        opening = self._open()
        self.texts.append(delta.text)
        change = {"delta": delta.text, "logprobs": []}
        return [*opening, self._event("output_text.delta", **self._place(), **change)]

    def finish(self, index: int, finished: FinishedText) -> Sequence[dict[str, Any]]:
        """What has begun ends; the last event has the whole response, with the verdict."""
        refusal, place = self._refusal(finished), self._place()
        if refusal is None:
            message = message_of(finished, self.exchange)
            said = self._open() if message is None else self.delta(index, TextDelta(message))
            text = "".join(self.texts)
            part = _part(text)
            done = self._event("output_text.done", **place, text=text, logprobs=[])
        else:
            part = _refusal_part(refusal)
            said = [
                self._event("content_part.added", **place, part=_refusal_part("")),
                self._event("refusal.delta", **place, delta=refusal),
            ]
            done = self._event("refusal.done", **place, refusal=refusal)
        response = self._ended(finished, part)
        return [
            *said,
            done,
            self._event("content_part.done", **place, part=part),
            self._event("output_item.done", output_index=0, item=response["output"][0]),
            self._event(response["status"], response=response),
        ]

    def usage(self, rows: Sequence[FinishedText], usage: Usage) -> Sequence[dict[str, Any]]:
        """None: the last event has the usage."""
        return ()

    def sent(self) -> SentStream:
        """The response as far as it has been streamed, and the number of its last event."""
        output = [self._item("incomplete", [_part("".join(self.texts))])]
        return SentStream(self._response("in_progress", output), self.number)

    @property
    def _structured(self) -> bool:
        return not isinstance(self.body.text.format, PlainText)

    def _format(self) -> dict[str, Any]:
        """The format that was asked for; its schema is not repeated, as `instructions`."""
        asked = self.body.text.format.model_dump(by_alias=True)
        return asked | {"schema": {}} if "schema" in asked else asked

    def _refusal(self, finished: FinishedText) -> str | None:
        return refusal_of(finished, self.exchange, structured=self._structured)

    def _open(self) -> list[dict[str, Any]]:
        if self.opened:
            return []
        self.opened = True
        return [self._event("content_part.added", **self._place(), part=_part(""))]

    def _event(self, kind: str, **members: Any) -> dict[str, Any]:
        self.number += 1
        return {"type": f"response.{kind}", "sequence_number": self.number, **members}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.item_id, "output_index": 0, "content_index": 0}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _ended(self, finished: FinishedText, part: dict[str, Any]) -> dict[str, Any]:
        reason = _REASONS.get(finished.reason)
        status = "completed" if reason is None else "incomplete"
        prompt, generated = finished.prompt_tokens, finished.completion_tokens
        return {
            **self._response(status, [self._item(status, [part])]),
            "incomplete_details": None if reason is None else {"reason": reason},
            "usage": {
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": generated,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + generated,
            },
            **self.exchange.guard(finished.verdict),
        }

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self.body
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            # not repeated: screens of answers would read it as a part of this one
            "instructions": None,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": body.temperature,
            "text": {"format": self._format()},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _refusal_part(refusal: str) -> dict[str, Any]:
    return {"type": "refusal", "refusal": refusal}


def responses_router(gateway: Gateway) -> APIRouter:
    """The route of responses."""
    router = APIRouter()

    @router.post("/v1/responses", openapi_extra=body_of(ResponsesRequest))
    async def create_response(request: Request) -> Response:
        admission = await gateway.admit(request, ResponsesRequest, gateway.text_service)
        body = admission.body
        prompt = await chat_prompt(gateway, admission)
        job = gateway.text_job(admission, [prompt], body.row_settings())
        reply = ResponsesReply(body, exchange_of(request))
        return await gateway.answer(request, job, reply, stream=body.stream)

    return router
