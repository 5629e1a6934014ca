"""`/v1/chat/completions`: text rows in OpenAI's schema."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.endpoints.gateway import Gateway
from server.endpoints.openapi import body_of
from server.observe.exchange import Exchange, exchange_of
from server.services.interface import FinishedText, TextDelta, TokenLogprob
from server.services.prompts import encoded
from server.services.text_jobs import CollectedText, Usage
from server.wire.schemas import ChatRequest

MESSAGE_SIZE = 64
"""Characters that the chat template adds to a message, roughly."""

LOGPROB_FLOOR = -9999.0
"""OpenAI's value for a token of probability zero: JSON has no infinity."""


def message_of(finished: FinishedText, exchange: Exchange) -> str | None:
    """What the policy says in place of a blocked answer; None where nothing is blocked, or where it
    says nothing."""
    return exchange.message if finished.reason == "content_filter" else None


def answer_of(row: CollectedText, exchange: Exchange) -> tuple[str, Sequence[TokenLogprob]]:
    """The text of a whole answer, and its tokens."""
    message = message_of(row.finished, exchange)
    return (row.text, row.tokens) if message is None else (message, ())


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The body of a chat completion, or its chunks; one object for each HTTP request."""

    model: str
    logprobs: bool
    exchange: Exchange
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, rows: Sequence[CollectedText], usage: Usage) -> dict[str, Any]:
        """A `chat.completion` with all choices."""
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": self._logprobs(tokens),
                    "finish_reason": row.finished.reason,
                    **self.exchange.guard(row.finished.verdict),
                }
                for index, row in enumerate(rows)
                for text, tokens in (answer_of(row, self.exchange),)
            ],
            "usage": usage.as_dict(),
            **self.exchange.guard(rows[0].finished.verdict),
        }

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a choice: its role."""
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def delta(self, index: int, delta: TextDelta) -> dict[str, Any]:
        """A chunk of new text."""
        return self._chunk(index, {"content": delta.text}, self._logprobs(delta.tokens))

    def finish(self, index: int, finished: FinishedText) -> dict[str, Any]:
        """The last chunk of one choice, with its verdict."""
        verdict = self.exchange.guard(finished.verdict)
        message = message_of(finished, self.exchange)
        chunk = self._chunk(index, {"content": message} if message is not None else {})
        chunk["choices"][0] |= {"finish_reason": finished.reason, **verdict}
        return chunk | verdict

    def usage(self, rows: Sequence[FinishedText], usage: Usage) -> dict[str, Any]:
        """The last chunk of a stream with `include_usage`."""
        chunk = {**self._head("chat.completion.chunk"), "choices": [], "usage": usage.as_dict()}
        return chunk | self.exchange.guard(rows[0].verdict)

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

    @router.post("/v1/chat/completions", openapi_extra=body_of(ChatRequest))
    async def create_chat_completion(request: Request) -> Response:
        admission = await gateway.admit(request, ChatRequest, gateway.text_service)
        body = admission.body
        messages = [message.as_template() for message in body.messages]
        size = sum(len(message["content"]) + MESSAGE_SIZE for message in messages)
        prompt = await encoded(admission.service.encode_chat, messages, size)
        job = gateway.text_job(
            admission,
            [prompt],
            max_tokens=body.max_completion_tokens or body.max_tokens,
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )
        return await gateway.answer(
            request, body, job, ChatReply(body.model, body.logprobs, exchange_of(request))
        )

    return router
