"""`/v1/chat/completions`: text rows in OpenAI's schema."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.endpoints.gateway import Gateway
from server.endpoints.text.answers import answer_of, message_of, refusal_of
from server.endpoints.text.conversations import chat_prompt
from server.error_shapes import SentStream
from server.observe.exchange import Exchange, exchange_of
from server.openapi.operation import ASKING, JSON, Operation
from server.services.interface import FinishedText, TextDelta, TokenLogprob
from server.services.text_jobs import Call, CollectedText, Usage
from server.services.token_gates import TokenGate
from server.services.tools.parser import CallDelta, CallEnd
from server.wire.schemas.answers.chat import ChatCompletion, ChatCompletionChunk
from server.wire.schemas.answers.errors import OpenAIError
from server.wire.schemas.text import ChatRequest

_OPERATION = Operation(
    body=ChatRequest,
    answers={JSON: ChatCompletion},
    events=(ChatCompletionChunk, OpenAIError),
    errors=ASKING,
    guarded=True,
)
LOGPROB_FLOOR = -9999.0
"""OpenAI's value for a token of probability zero: JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The body of a chat completion, or its chunks; one object for each HTTP request."""

    names_events: ClassVar[bool] = False

    model: str
    logprobs: bool
    exchange: Exchange
    structured: bool = False
    """Whether the answer has a given form: what is blocked is then a `refusal`."""
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, rows: Sequence[CollectedText], usage: Usage) -> dict[str, Any]:
        """A `chat.completion` with all choices."""
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": index,
                    "message": _message(text, row.calls, refusal),
                    "logprobs": self._logprobs(tokens),
                    "finish_reason": row.finished.reason,
                    **_gates(() if refusal is not None else row.gates),
                    **self.exchange.guard(row.finished.verdict),
                }
                for index, row in enumerate(rows)
                for text, tokens, refusal in (self._answer(row),)
            ],
            "usage": usage.as_dict(),
            **self.exchange.guard(rows[0].finished.verdict),
        }

    def opening(self, index: int) -> Sequence[dict[str, Any]]:
        """The first chunk of a choice: its role."""
        return [self._chunk(index, {"role": "assistant", "content": "", "refusal": None})]

    def delta(self, index: int, delta: TextDelta) -> Sequence[dict[str, Any]]:
        """A chunk of new text."""
        chunk = self._chunk(index, {"content": delta.text}, self._logprobs(delta.tokens))
        chunk["choices"][0] |= _gates(delta.gates)
        return [chunk]

    def call(self, index: int, event: CallDelta | CallEnd) -> Sequence[dict[str, Any]]:
        """A chunk with a part of a call."""
        if isinstance(event, CallEnd):
            return ()
        function: dict[str, Any] = {"arguments": event.arguments}
        call: dict[str, Any] = {"index": event.number, "function": function}
        if event.id is not None:
            call |= {"id": event.id, "type": "function"}
            function["name"] = event.name
        return [self._chunk(index, {"tool_calls": [call]})]

    def finish(self, index: int, finished: FinishedText) -> Sequence[dict[str, Any]]:
        """The last chunk of one choice, with its verdict."""
        verdict = self.exchange.guard(finished.verdict)
        message = message_of(finished, self.exchange)
        change = {"content": message} if message is not None else {}
        refusal = refusal_of(finished, self.exchange, structured=self.structured)
        if refusal is not None:
            change = {"refusal": refusal}
        chunk = self._chunk(index, change)
        chunk["choices"][0] |= {"finish_reason": finished.reason, **verdict}
        return [chunk | verdict]

    def usage(self, rows: Sequence[FinishedText], usage: Usage) -> Sequence[dict[str, Any]]:
        """The last chunk of a stream with `include_usage`."""
        chunk = {**self._head("chat.completion.chunk"), "choices": [], "usage": usage.as_dict()}
        return [chunk | self.exchange.guard(rows[0].verdict)]

    def sent(self) -> SentStream:
        """Errors of this API refer to nothing."""
        return SentStream()

    def _answer(self, row: CollectedText) -> tuple[str | None, Sequence[TokenLogprob], str | None]:
        """The text of a choice, its tokens, and the refusal in its place."""
        refusal = refusal_of(row.finished, self.exchange, structured=self.structured)
        if refusal is not None:
            return None, (), refusal
        return *answer_of(row, self.exchange), None

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = [
            _token(token.text, token.logprob)
            | {"top_logprobs": [_token(text, logprob) for _, text, logprob in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}


def _gates(gates: Sequence[TokenGate]) -> dict[str, Any]:
    """The member `gates` of a choice, where there are any."""
    if not gates:
        return {}
    named = [
        {"position": gate.position, "scores": gate.scores}
        | ({"token": gate.text} if gate.position == 0 else {})
        for gate in gates
    ]
    return {"gates": named}


def _message(text: str | None, calls: Sequence[Call], refusal: str | None) -> dict[str, Any]:
    content = text or None if calls else text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": refusal}
    called = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]
    return message | ({"tool_calls": called} if called else {})


def _token(text: str, logprob: float) -> dict[str, Any]:
    # A token that is part of a character has no text of its own: its bytes are unknown.
    known = "\ufffd" not in text
    return {
        "token": text,
        "logprob": max(logprob, LOGPROB_FLOOR),
        "bytes": list(text.encode()) if known else None,
    }


def chat_router(gateway: Gateway) -> APIRouter:
    """The route of chat completions."""
    router = APIRouter()

    @router.post("/v1/chat/completions", openapi_extra=_OPERATION.as_extra())
    async def create_chat_completion(request: Request) -> Response:
        """Answer a conversation, whole or as a stream."""
        admission = await gateway.admit(request, ChatRequest, gateway.text_service)
        body = admission.body
        if body.guard is not None and body.guard.debug:
            gateway.require_debug(request, admission)
        asked = await chat_prompt(gateway, admission)
        job = gateway.text_job(admission, [asked.prompt], body.row_settings(), asked.tools)
        structured = job.requests[0].sampling.constraint is not None
        reply = ChatReply(body.model, body.logprobs, exchange_of(request), structured)
        return await gateway.answer(
            request, job, reply, stream=body.stream, include_usage=body.include_usage
        )

    return router
