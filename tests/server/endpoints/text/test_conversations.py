"""Long conversations are encoded beside the event loop, whatever makes them long."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from server.services.prompts import AT_ONCE
from tests.server.live_server import LiveServer

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def _tool(description: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "description": description}}


def _called(arguments: str) -> list[dict[str, Any]]:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "warm"},
    ]


LONG = "x" * AT_ONCE
BODIES: dict[str, tuple[dict[str, Any], bool]] = {
    "short": ({"tools": [_tool("short")]}, True),
    "definition": ({"tools": [_tool(LONG)]}, False),
    "parameters": (
        {"tools": [{**_tool(""), "function": {"name": "f", "parameters": {"title": LONG}}}]},
        False,
    ),
    "arguments": ({"messages": _called(f'{{"x": "{LONG}"}}')}, False),
    "raw arguments": ({"messages": _called(LONG)}, False),
    "reasoning": (
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "a", "reasoning_content": LONG},
                {"role": "user", "content": "hi"},
            ]
        },
        False,
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_long_parts_are_encoded_in_a_thread(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    threads: list[str] = []
    encode = live.service.encode_chat

    def watched(*args: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name)
        return encode(*args, **options)

    monkeypatch.setattr(live.service, "encode_chat", watched)
    body, at_once = BODIES[name]
    asked = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], **body}
    assert live.post("/v1/chat/completions", json=asked).status_code == 200
    (thread,) = threads
    assert thread.startswith("prompts") is not at_once
