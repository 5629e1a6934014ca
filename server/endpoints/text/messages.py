"""`/v1/messages` and its `/count_tokens`: text rows in Anthropic's schema."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.endpoints.gateway import Gateway
from server.endpoints.text.answers import answer_of, message_of
from server.endpoints.text.conversations import chat_prompt
from server.endpoints.text.message_blocks import ContentBlocks, blocks_of
from server.error_shapes import SentStream
from server.observe.exchange import Exchange, exchange_of
from server.openapi.operation import ASKING, JSON, Operation
from server.services.interface import FinishedText, TextDelta
from server.services.text_jobs import CollectedText, Usage
from server.services.tools.parser import CallDelta, CallEnd
from server.wire.replies import JSONReply
from server.wire.schemas.answers.errors import AnthropicError
from server.wire.schemas.answers.messages import AssistantMessage, MessageEvents, TokenCount
from server.wire.schemas.messages import CountTokensRequest, MessagesRequest

_OPERATION = Operation(
    body=MessagesRequest,
    answers={JSON: AssistantMessage},
    events=(MessageEvents, AnthropicError),
    errors=ASKING,
    guarded=True,
)
_COUNTING = Operation(
    body=CountTokensRequest, answers={JSON: TokenCount}, errors=ASKING, guarded=True
)
_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "refusal",
    "tool_calls": "tool_use",
}
"""Anthropic's reasons for which an answer stops, by those for which a row ends."""


@dataclass(frozen=True, slots=True)
class MessagesReply:
    """A message, or the events that build it; one object for each HTTP request."""

    names_events: ClassVar[bool] = True

    model: str
    prompt_tokens: int
    exchange: Exchange
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    blocks: ContentBlocks = field(default_factory=ContentBlocks)

    def whole(self, rows: Sequence[CollectedText], usage: Usage) -> dict[str, Any]:
        """A `message` with a block of text, unless that is empty, and one for each call."""
        (row,) = rows
        text, _ = answer_of(row, self.exchange)
        return {
            **self._message(blocks_of(text, row.calls)),
            **_end(row.finished),
            "usage": _usage(usage.prompt, usage.completion),
            **self.exchange.guard(row.finished.verdict),
        }

    def opening(self, index: int) -> Sequence[dict[str, Any]]:
        """The message has begun."""
        message = self._message([]) | {"usage": _usage(self.prompt_tokens, 0)}
        return [{"type": "message_start", "message": message}]

    def delta(self, index: int, delta: TextDelta) -> Sequence[dict[str, Any]]:
        """New text, in a block."""
        return [*self.blocks.text(delta.text)]

    def call(self, index: int, event: CallDelta | CallEnd) -> Sequence[dict[str, Any]]:
        """A part of a call, in a block of its own."""
        return [*self.blocks.call(event)]

    def finish(self, index: int, finished: FinishedText) -> Sequence[dict[str, Any]]:
        """What has begun ends; the event `message_delta` has the verdict."""
        message = message_of(finished, self.exchange)
        said = [] if message is None else self.delta(index, TextDelta(message))
        stop = [*said, *self.blocks.close()]
        end = {
            "type": "message_delta",
            "delta": _end(finished),
            "usage": _usage(finished.prompt_tokens, finished.completion_tokens),
            **self.exchange.guard(finished.verdict),
        }
        return [*stop, end, {"type": "message_stop"}]

    def usage(self, rows: Sequence[FinishedText], usage: Usage) -> Sequence[dict[str, Any]]:
        """None: `message_delta` has the usage."""
        return ()

    def sent(self) -> SentStream:
        """Errors of this API refer to nothing."""
        return SentStream()

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
        }


def _end(finished: FinishedText) -> dict[str, Any]:
    stop = finished.stop if finished.reason == "stop" else None
    reason = _REASONS[finished.reason] if stop is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": stop}


def _usage(prompt: int, generated: int) -> dict[str, Any]:
    return {
        "input_tokens": prompt,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": generated,
    }


def messages_router(gateway: Gateway) -> APIRouter:
    """The routes of messages."""
    router = APIRouter()

    @router.post("/v1/messages", openapi_extra=_OPERATION.as_extra())
    async def create_message(request: Request) -> Response:
        """Answer a conversation, whole or as a stream, in Anthropic's schema."""
        admission = await gateway.admit(request, MessagesRequest, gateway.text_service)
        body = admission.body
        asked = await chat_prompt(gateway, admission)
        job = gateway.text_job(admission, [asked.prompt], body.row_settings(), asked.tools)
        reply = MessagesReply(body.model, len(asked.prompt), exchange_of(request))
        return await gateway.answer(request, job, reply, stream=body.stream)

    @router.post("/v1/messages/count_tokens", openapi_extra=_COUNTING.as_extra())
    async def count_tokens(request: Request) -> Response:
        """The number of tokens of a conversation, which no model is asked about."""
        admission = await gateway.admit(request, CountTokensRequest, gateway.text_service)
        asked = await chat_prompt(gateway, admission)
        return JSONReply({"input_tokens": len(asked.prompt)})

    return router
