"""`/v1/responses`: text rows in the schema of OpenAI's newer API."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.endpoints.gateway import Admission, Gateway
from server.endpoints.text.answers import answer_of, message_of, refusal_of
from server.endpoints.text.conversations import chat_prompt
from server.endpoints.text.response_items import ItemEvent, ResponseOutput
from server.endpoints.text.response_store import ResponseStore, StoredResponse, turn_of
from server.error_shapes import SentStream
from server.observe.exchange import Exchange, exchange_of
from server.openapi.operation import ASKING, JSON, Operation
from server.services.interface import FinishedText, TextDelta
from server.services.text_jobs import CollectedText, Usage
from server.services.tools.parser import CallDelta, CallEnd
from server.wire.schemas.answers.responses import ResponseEvents, ResponseObject
from server.wire.schemas.conversation import Turn
from server.wire.schemas.responses import ResponsesRequest
from server.wire.schemas.structured import PlainText
from server.wire.schemas.tools import ModeChoice

_OPERATION = Operation(
    body=ResponsesRequest,
    answers={JSON: ResponseObject},
    events=(ResponseEvents,),
    errors=ASKING,
    guarded=True,
)
_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a response is incomplete, by the reason for which its row ended."""


@dataclass(slots=True)
class ResponsesReply:
    """A response object, or the events that build it; one object for each HTTP request."""

    names_events: ClassVar[bool] = True

    body: ResponsesRequest
    exchange: Exchange
    keep: Callable[[str, Turn], None] | None = None
    """Keeps the response under its id, with this turn at its end; None where it is not kept."""
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    number: int = -1
    """Of the last event."""
    output: ResponseOutput = field(default_factory=ResponseOutput)

    def whole(self, rows: Sequence[CollectedText], usage: Usage) -> dict[str, Any]:
        """A `response` with its message and its calls."""
        (row,) = rows
        refusal = self._refusal(row.finished)
        text, _ = answer_of(row, self.exchange)
        if refusal is not None:
            events = [self.output.refusal(refusal)]
        else:
            events = [self.output.text(text)] if text or not row.calls else []
        for number, call in enumerate(row.calls):
            events.append(self.output.call(CallDelta(number, call.arguments, call.id, call.name)))
            events.append(self.output.call(CallEnd(number)))
        for _ in chain(*events, self.output.finish(_status(row.finished))):
            pass  # whole responses have no events
        return self._ended(row.finished)

    def opening(self, index: int) -> Sequence[dict[str, Any]]:
        """The response has begun."""
        response = self._response("in_progress", [])
        return [
            self._event("created", response=response),
            self._event("in_progress", response=response),
        ]

    def delta(self, index: int, delta: TextDelta) -> Sequence[dict[str, Any]]:
        """New text, in a message."""
        return self._events(self.output.text(delta.text))

    def call(self, index: int, event: CallDelta | CallEnd) -> Sequence[dict[str, Any]]:
        """A part of a call, which is an item of its own."""
        return self._events(self.output.call(event))

    def finish(self, index: int, finished: FinishedText) -> Sequence[dict[str, Any]]:
        """What has begun ends; the last event has the whole response, with the verdict."""
        refusal, message = self._refusal(finished), message_of(finished, self.exchange)
        said: Iterable[ItemEvent] = ()
        if refusal is not None:
            said = self.output.refusal(refusal)
        elif message is not None:
            said = self.output.text(message)
        events = self._events(said)
        closed = self._events(self.output.finish(_status(finished)))
        response = self._ended(finished)
        return [*events, *closed, self._event(response["status"], response=response)]

    def usage(self, rows: Sequence[FinishedText], usage: Usage) -> Sequence[dict[str, Any]]:
        """None: the last event has the usage."""
        return ()

    def sent(self) -> SentStream:
        """The response as far as it has been streamed, and the number of its last event."""
        return SentStream(self._response("in_progress", self.output.items()), self.number)

    def _event(self, kind: str, **members: Any) -> dict[str, Any]:
        self.number += 1
        return {"type": f"response.{kind}", "sequence_number": self.number, **members}

    def _events(self, events: Iterable[ItemEvent]) -> list[dict[str, Any]]:
        return [self._event(kind, **members) for kind, members in events]

    @property
    def _structured(self) -> bool:
        return not isinstance(self.body.text.format, PlainText)

    def _format(self) -> dict[str, Any]:
        """The format that was asked for; its schema is not repeated, as `instructions`."""
        asked = self.body.text.format.model_dump(by_alias=True)
        return asked | {"schema": {}} if "schema" in asked else asked

    def _refusal(self, finished: FinishedText) -> str | None:
        return refusal_of(finished, self.exchange, structured=self._structured)

    def _ended(self, finished: FinishedText) -> dict[str, Any]:
        """The response as a whole, which is kept now: the client knows its id."""
        if self.keep is not None:
            self.keep(self.id, turn_of(self.output.items()))
        reason = _REASONS.get(finished.reason)
        prompt, generated = finished.prompt_tokens, finished.completion_tokens
        return {
            **self._response(_status(finished), self.output.items()),
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
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": self.keep is not None,
            "temperature": body.temperature,
            "text": {"format": self._format()},
            "tool_choice": _shown(body.tool_choice),
            # nor are the tools, whose descriptions are not of the model
            "tools": [],
            "top_logprobs": 0,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }


def _shown(choice: Any) -> Any:
    """A choice as clients write it."""
    if choice is None:
        return "auto"
    return choice.type if isinstance(choice, ModeChoice) else choice.model_dump()


def _status(finished: FinishedText) -> str:
    return "incomplete" if finished.reason in _REASONS else "completed"


def _keeper(
    store: ResponseStore, admission: Admission[ResponsesRequest, Any], turns: Sequence[Turn]
) -> Callable[[str, Turn], None] | None:
    """What keeps the response of a request with these `turns`; None where it is not to be kept.

    Screens of answers (`record_id`) may change what the client is given: the answer of the model
    would come back by this way.
    """
    if not store.limit or admission.body.store is False or admission.record_id:
        return None

    def keep(response_id: str, answer: Turn) -> None:
        whole = (*turns, answer)
        store.keep(response_id, StoredResponse(whole, admission.tenant, admission.policy))

    return keep


def responses_router(gateway: Gateway) -> APIRouter:
    """The route of responses."""
    router = APIRouter()
    store = ResponseStore(gateway.config.server.response_store)

    @router.post("/v1/responses", openapi_extra=_OPERATION.as_extra())
    async def create_response(request: Request) -> Response:
        """Answer a conversation, whole or as a stream, in OpenAI's newer schema."""
        admission = await gateway.admit(request, ResponsesRequest, gateway.text_service)
        body = admission.body
        turns = body.own_turns()
        if body.previous_response_id is not None:
            owner = (admission.tenant, admission.policy)
            turns = [*store.turns_before(body.previous_response_id, *owner), *turns]
        asked = await chat_prompt(gateway, admission, body.instructed(turns))
        job = gateway.text_job(admission, [asked.prompt], body.row_settings(), asked.tools)
        reply = ResponsesReply(body, exchange_of(request), _keeper(store, admission, turns))
        return await gateway.answer(request, job, reply, stream=body.stream)

    return router
