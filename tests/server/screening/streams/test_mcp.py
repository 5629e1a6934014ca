"""Messages of MCP in streams: each is read by itself, and each request gets one answer."""

from __future__ import annotations

import json
from typing import Any

from server.screening.streams.formats.mcp import (
    BLOCKED,
    McpFormat,
    blocked_reply,
    requests_in,
    verdict_holder,
)

VERDICT = {"outcome": "blocked"}


def data_of(events: list[bytes]) -> list[dict[str, Any]]:
    lines = [line for event in events for line in event.decode().splitlines()]
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data:")]


def cut(reader: McpFormat, event: dict[str, Any]) -> list[dict[str, Any]]:
    """What leaves in place of an event."""
    reader.observe(event)
    (group,) = reader.groups(event)
    return data_of(list(reader.cut_events(group, VERDICT)))


def test_requests_are_known_by_their_ids() -> None:
    call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {}}
    named = {"jsonrpc": "2.0", "id": "7", "method": "tools/list"}
    told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    answer = {"jsonrpc": "2.0", "id": 9, "result": {}}
    assert requests_in(call) == {7: "tools/call"}
    batch = {"batch": [call, named, told, answer, 3, None, {"method": "x", "id": True}]}
    assert requests_in(batch) == {7: "tools/call", "7": "tools/list"}
    assert requests_in({"batch": 3}) == requests_in(told) == requests_in(answer) == {}


def test_a_blocked_call_has_a_result_and_any_other_request_an_error() -> None:
    reader = McpFormat({1: "tools/call", "a": "resources/read"})
    (result,) = cut(reader, {"jsonrpc": "2.0", "id": 1, "result": {"content": []}})
    assert result["id"] == 1 and result["result"]["isError"] is True
    assert result["result"]["content"][0]["type"] == "text"
    assert result["result"]["_meta"] == {"guard": VERDICT}
    (error,) = cut(reader, {"jsonrpc": "2.0", "id": "a", "result": {}})
    assert error["id"] == "a" and error["error"]["code"] == BLOCKED
    assert error["error"]["data"]["guard"] == VERDICT


def test_a_blocked_notification_is_dropped_and_a_blocked_request_ends_the_waiting() -> None:
    reader = McpFormat({1: "tools/call", 2: "tools/list"})
    progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
    assert cut(reader, progress) == []
    ask = {"jsonrpc": "2.0", "id": 1, "method": "sampling/createMessage", "params": {}}
    assert [reply["id"] for reply in cut(reader, ask)] == [1, 2]
    # the server's own answers would be second ones
    (group,) = reader.groups({"jsonrpc": "2.0", "id": 2, "result": {}})
    assert group == ("message", 2)
    assert cut(reader, ask) == []


def test_messages_are_groups_of_their_own() -> None:
    reader = McpFormat({1: "tools/call"})
    told = {"jsonrpc": "2.0", "method": "notifications/message", "params": {}}
    groups = []
    for event in (told, told, {"jsonrpc": "2.0", "id": 1, "result": {}}, {"id": [1]}):
        reader.observe(event)
        groups += reader.groups(event)
    assert len(set(groups)) == 4


def test_the_verdict_stands_where_clients_leave_it_alone() -> None:
    answer: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "result": {}}
    holder = verdict_holder(answer)
    assert holder is not None
    holder["guard"] = VERDICT
    assert answer == {"jsonrpc": "2.0", "id": 1, "result": {"_meta": {"guard": VERDICT}}}
    for message in ({"id": 1, "error": {}}, [], {"result": 3}, {"result": {"_meta": 3}}):
        assert verdict_holder(message) is None
    reader = McpFormat()
    assert reader.carries_verdict(answer)
    assert not reader.carries_verdict({"id": 1, "error": {}})
    assert not reader.carries_verdict({"id": 1, "method": "x", "result": {}})


def test_without_a_verdict_to_tell_there_is_none() -> None:
    assert "guard" not in blocked_reply(1, "tools/list", None)["error"]["data"]
    assert blocked_reply(1, "tools/call", None)["result"]["_meta"] == {}
