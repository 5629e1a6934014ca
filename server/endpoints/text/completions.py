"""`/v1/completions`: OpenAI's older schema, for prompts without a chat template."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.endpoints.gateway import Gateway
from server.endpoints.text.answers import answer_of, message_of
from server.endpoints.text.chat import LOGPROB_FLOOR
from server.error_shapes import SentStream
from server.observe.exchange import Exchange, exchange_of
from server.openapi.operation import ASKING, JSON, Operation
from server.services.interface import FinishedText, TextDelta, TokenLogprob
from server.services.prompts import encoded
from server.services.text_jobs import CollectedText, Usage
from server.services.tools.parser import CallDelta, CallEnd
from server.wire.schemas.answers.chat import Completion, CompletionChunk
from server.wire.schemas.answers.errors import OpenAIError
from server.wire.schemas.text import CompletionRequest
from steering.prompt import Prompt

_OPERATION = Operation(
    body=CompletionRequest,
    answers={JSON: Completion},
    events=(CompletionChunk, OpenAIError),
    errors=ASKING,
    guarded=True,
)
DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""


@dataclass(frozen=True, slots=True)
class CompletionReply:
    """The body of a text completion, or its chunks, which have the same form.

    One object for each HTTP request.
    """

    names_events: ClassVar[bool] = False

    model: str
    logprobs: bool
    exchange: Exchange
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    offsets: dict[int, int] = field(default_factory=dict)
    """Text offset of the next token of each choice, in characters."""

    def whole(self, rows: Sequence[CollectedText], usage: Usage) -> dict[str, Any]:
        """A `text_completion` with all choices."""
        choices = [
            self._choice(index, *answer_of(row, self.exchange))
            | {"finish_reason": row.finished.reason}
            | self.exchange.guard(row.finished.verdict)
            for index, row in enumerate(rows)
        ]
        verdict = self.exchange.guard(rows[0].finished.verdict)
        return self._body(choices) | {"usage": usage.as_dict()} | verdict

    def opening(self, index: int) -> Sequence[dict[str, Any]]:
        """None: plain completions have no role."""
        return ()

    def delta(self, index: int, delta: TextDelta) -> Sequence[dict[str, Any]]:
        """A chunk of new text."""
        return [self._body([self._choice(index, delta.text, delta.tokens)])]

    def call(self, index: int, event: CallDelta | CallEnd) -> Sequence[dict[str, Any]]:
        """None: plain completions offer no tools."""
        return ()

    def finish(self, index: int, finished: FinishedText) -> Sequence[dict[str, Any]]:
        """The last chunk of one choice, with its verdict."""
        verdict = self.exchange.guard(finished.verdict)
        text = message_of(finished, self.exchange) or ""
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finished.reason}
        return [self._body([choice | verdict]) | verdict]

    def usage(self, rows: Sequence[FinishedText], usage: Usage) -> Sequence[dict[str, Any]]:
        """The last chunk of a stream with `include_usage`."""
        verdict = self.exchange.guard(rows[0].verdict)
        return [self._body([]) | {"usage": usage.as_dict()} | verdict]

    def sent(self) -> SentStream:
        """Errors of this API refer to nothing."""
        return SentStream()

    def _body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _choice(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, tokens) if self.logprobs else None,
            "finish_reason": None,
        }

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        offsets = []
        offset = self.offsets.get(index, 0)
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        self.offsets[index] = offset
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [max(token.logprob, LOGPROB_FLOOR) for token in tokens],
            "top_logprobs": [_top(token) for token in tokens],
            "text_offset": offsets,
        }


def _top(token: TokenLogprob) -> dict[str, float]:
    """Log-probabilities of the likeliest tokens by text, the generated token always among them."""
    top: dict[str, float] = {}
    for _, text, logprob in (*token.top, (token.token_id, token.text, token.logprob)):
        # Two tokens may have the same text: the likelier one comes first and is kept.
        top.setdefault(text, max(logprob, LOGPROB_FLOOR))
    return top


def completions_router(gateway: Gateway) -> APIRouter:
    """The route of plain completions."""
    router = APIRouter()

    @router.post("/v1/completions", openapi_extra=_OPERATION.as_extra())
    async def create_completion(request: Request) -> Response:
        """Continue texts, whole or as a stream."""
        admission = await gateway.admit(request, CompletionRequest, gateway.text_service)
        body = admission.body
        gateway.check_rows(len(body.prompt), body.n)
        prompts = [
            await encoded(admission.service.encode, prompt, len(prompt))
            if isinstance(prompt, str)
            else Prompt(prompt)
            for prompt in body.prompt
        ]
        settings = body.row_settings()
        if settings.max_tokens is None:
            most = gateway.config.server.max_tokens_limit
            settings = replace(settings, max_tokens=min(DEFAULT_MAX_TOKENS, most))
        job = gateway.text_job(admission, prompts, settings)
        reply = CompletionReply(body.model, body.logprobs is not None, exchange_of(request))
        return await gateway.answer(
            request, job, reply, stream=body.stream, include_usage=body.include_usage
        )

    return router
