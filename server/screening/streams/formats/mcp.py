"""Messages of the Model Context Protocol: JSON-RPC 2.0, one in each event.

Each message is whole, so that each is read by itself, and none waits for another. One that must not
pass is dropped, or answered in its place: a request gets one answer, whatever happens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.screening.streams.formats.base import (
    NO_OPTIONS,
    Group,
    Slot,
    StreamFormat,
    StreamOptions,
    framed,
)

RequestId = str | int | float
BLOCKED = -32010
"""The code of a JSON-RPC error for what a policy does not let pass; servers choose those of -32000
to -32019 themselves."""
_MESSAGE = "The content filter does not let this pass."
BATCH = "batch"
"""The name under which a body that is a list of messages has them."""


def requests_in(body: Mapping[str, Any]) -> dict[RequestId, str]:
    """The methods of the requests in a body, by their ids; notifications have no id."""
    messages = body.get(BATCH, [body])
    found = {}
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, dict) and isinstance(method := message.get("method"), str):
            name = message.get("id")
            if isinstance(name, RequestId) and not isinstance(name, bool):
                found[name] = method
    return found


def blocked_reply(
    name: RequestId | None,
    method: str | None,
    verdict: Mapping[str, Any] | None,
    message: str = _MESSAGE,
) -> dict[str, Any]:
    """The answer to a request that was blocked, or whose answer was.

    For the call of a tool it is a result that says so, which the model reads and goes on; for any
    other request an error.
    """
    reply: dict[str, Any] = {"jsonrpc": "2.0", "id": name}
    guard = {"guard": verdict} if verdict is not None else {}
    if method == "tools/call":
        content = [{"type": "text", "text": message}]
        # the revision of 2026-07-28 asks for `resultType`
        result = {"resultType": "complete", "content": content, "isError": True, "_meta": guard}
        reply["result"] = result
    else:
        data = {"code": "content_filter", **guard}
        reply["error"] = {"code": BLOCKED, "message": message, "data": data}
    return reply


def verdict_holder(message: Any) -> dict[str, Any] | None:
    """Where the verdict goes in an answer: clients refuse members that JSON-RPC does not have, so
    it is in the `_meta` of a result."""
    result = message.get("result") if isinstance(message, dict) else None
    if not isinstance(result, dict):
        return None
    meta = result.setdefault("_meta", {})
    return meta if isinstance(meta, dict) else None


class McpFormat(StreamFormat):
    """The messages of a server of MCP, in answer to requests with these methods by their ids; none
    of a stream that the client has opened to listen."""

    reports_errors = False

    def __init__(
        self,
        requests: Mapping[RequestId, str] | None = None,
        options: StreamOptions = NO_OPTIONS,
    ) -> None:
        super().__init__(options)
        self._open = dict(requests or {})
        self._replaced: dict[RequestId, Group] = {}
        self._number = 0
        self._is_request = False

    def observe(self, event: dict[str, Any]) -> None:
        self._number += 1
        self._is_request = "method" in event and "id" in event

    def slots(self, event: dict[str, Any]) -> Sequence[Slot]:
        return ()

    def ended_groups(self, event: dict[str, Any]) -> Sequence[Group]:
        return ()

    def groups(self, event: dict[str, Any]) -> Sequence[Group]:
        name = event.get("id")
        if "method" in event or not isinstance(name, RequestId):
            return [("message", self._number)]
        return [self._replaced.get(name, ("answer", name))]

    def carries_verdict(self, event: dict[str, Any]) -> bool:
        return "method" not in event and isinstance(event.get("result"), dict)

    def verdict_holder(self, event: dict[str, Any]) -> dict[str, Any] | None:
        return verdict_holder(event)

    def cut_events(self, group: Group, verdict: Mapping[str, Any] | None) -> Iterator[bytes]:
        assert isinstance(group, tuple)
        names = [group[1]] if group[0] == "answer" else []
        if self._is_request:
            # the server waits for an answer to it, and so would everybody who waits for the server
            names = list(self._open)
        message = self.options.message or _MESSAGE
        for name in names:
            method = self._open.pop(name, None)
            self._replaced[name] = group
            yield framed(blocked_reply(name, method, verdict, message), "message")

    def closing_events(self, verdict: Mapping[str, Any] | None) -> Iterator[bytes]:
        return iter(())
