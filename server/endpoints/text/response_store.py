"""Responses that a request may go on from, by `previous_response_id`: in memory, bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import UnknownResponse
from server.wire.schemas.conversation import ToolCall, Turn

MAX_CHARS = 64 * 2**20
"""Characters of all conversations that are kept, images as base64 included."""
TURN_SIZE = 500
"""Characters that a turn counts for beside its own: what its objects take."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """The conversation up to a response, its own turn included, and who may go on with it."""

    turns: tuple[Turn, ...]
    tenant: str
    policy: str

    @property
    def size(self) -> int:
        return sum(map(_size, self.turns))


class ResponseStore:
    """At most `limit` responses, the latest ones; none where that is 0."""

    def __init__(self, limit: int, max_chars: int = MAX_CHARS) -> None:
        self.limit, self._max_chars = limit, max_chars
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._chars = 0

    def keep(self, response_id: str, response: StoredResponse) -> None:
        """Keep a response; the oldest ones make room for it."""
        self._responses[response_id] = response
        self._chars += response.size
        while len(self._responses) > self.limit or self._chars > self._max_chars:
            _, oldest = self._responses.popitem(last=False)
            self._chars -= oldest.size

    def turns_before(self, response_id: str, tenant: str, policy: str) -> Sequence[Turn]:
        """The conversation that a request under `policy` goes on with.

        Raises UnknownResponse, also for the response of another tenant, and for one that was made
        under another policy: its guards and screens have read the conversation so far.
        """
        param = "previous_response_id"
        if not self.limit:
            raise UnknownResponse(
                "This server keeps no responses ('response_store' in [server]): send the "
                "conversation as 'input'.",
                param=param,
            )
        stored = self._responses.get(response_id)
        if stored is None or stored.tenant != tenant:
            raise UnknownResponse(
                f"There is no response '{response_id[:80]}' any more, or it was not kept: send the "
                "conversation as 'input'.",
                param=param,
            )
        if stored.policy != policy:
            raise UnknownResponse(
                f"The response '{response_id[:80]}' was made under another policy than "
                f"'{policy}': ask under that one, or send the conversation as 'input'.",
                param=param,
            )
        return stored.turns


def turn_of(items: Iterable[Mapping[str, Any]]) -> Turn:
    """The turn of the assistant that the output of a response is."""
    texts: list[str] = []
    calls: list[ToolCall] = []
    for item in items:
        if item["type"] == "function_call":
            calls.append(ToolCall.of_text(item["call_id"], item["name"], item["arguments"]))
        else:
            texts += [part.get("text") or part.get("refusal", "") for part in item["content"]]
    return Turn("assistant", tuple(texts), calls=tuple(calls))


def _size(turn: Turn) -> int:
    return TURN_SIZE + turn.characters + sum(len(image.data) for image in turn.images)
