"""`/v1/messages` in Anthropic's schema, over plain HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.server.live_server import Launch, LiveServer, key, settings

FORM = {"type": "json_schema", "schema": {"type": "object"}}
HEADERS = {"x-api-key": "any", "anthropic-version": "2023-06-01"}


def post(live: LiveServer, text: Any = "hi", path: str = "", **body: Any) -> httpx.Response:
    body = {
        "model": "fake",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": text}],
        **body,
    }
    body = {name: value for name, value in body.items() if value is not ...}
    return live.post(f"/v1/messages{path}", json=body, headers=HEADERS)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each with the name of its type."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def refusal(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    body = response.json()
    assert (response.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["request_id"] == response.headers["request-id"]
    error: dict[str, Any] = body["error"]
    return error


def test_the_answer_has_anthropics_shape_and_the_verdict(live: LiveServer) -> None:
    response = post(live, guard={"policy": "strict"}, temperature=0.5, top_p=0.25)
    body = response.json()
    (verdict,) = live.verdicts
    assert body.pop("guard") == httpx.Response(200, json=verdict.as_dict()).json()
    assert body.pop("id").startswith("msg_")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": [{"type": "text", "text": "Hello there!"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 2,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 3,
        },
    }
    assert response.headers["X-Guard-Policy"] == "strict"
    assert response.headers["X-Guard-Verdict"] == "pass"
    sampling = live.service.submitted[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (100, 0.5, 0.25)


def test_system_and_blocks_reach_the_template(live: LiveServer) -> None:
    cached = {"type": "ephemeral", "ttl": "1h"}
    post(
        live,
        system=[{"type": "text", "text": "be kind", "cache_control": cached}],
        cache_control={"type": "ephemeral"},
        metadata={"user_id": "u"},
        messages=[
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b", "cache_control": cached}]},
            {"role": "assistant", "content": [{"type": "text", "text": "c", "citations": None}]},
            {"role": "user", "content": "d"},
        ],
    )
    assert [(m["role"], m["content"]) for m in live.service.chats[-1]] == [
        ("system", "be kind"),
        ("user", "a\nb"),
        ("assistant", "c"),
        ("user", "d"),
    ]


@pytest.mark.parametrize(
    ("text", "options", "end"),
    [
        ("hi", {}, ("end_turn", None)),
        ("hi", {"max_tokens": 1}, ("max_tokens", None)),
        ("cut", {}, ("refusal", None)),
        ("stopped", {"stop_sequences": ["x", "END"]}, ("stop_sequence", "END")),
    ],
)
def test_the_reason_of_the_end_is_anthropics(
    live: LiveServer, text: str, options: dict[str, Any], end: tuple[str, str | None]
) -> None:
    body = post(live, text, **options).json()
    assert (body["stop_reason"], body["stop_sequence"]) == end
    assert live.service.submitted[0].sampling.stop == tuple(options.get("stop_sequences", ()))
    delta = events_of(post(live, text, stream=True, **options))[-2]["delta"]
    assert (delta["stop_reason"], delta["stop_sequence"]) == end


def test_more_tokens_than_are_possible_are_as_many_as_are(live: LiveServer) -> None:
    """Clients have to send a number, and many send the most of a model that they know."""
    for text in ("x", "x" * 4000):
        assert post(live, text, max_tokens=128_000).status_code == 200
    limits = [request.sampling.max_tokens for request in live.service.submitted]
    assert limits == [2048, 96]


def test_an_answer_without_text_has_no_block(live: LiveServer) -> None:
    assert post(live, "silent").json()["content"] == []


def test_a_stream_has_every_event_in_order(live: LiveServer) -> None:
    events = events_of(post(live, stream=True))
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        *3 * ["content_block_delta"],
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["usage"]["input_tokens"] == 2
    assert events[0]["message"]["content"] == []
    texts = [event["delta"]["text"] for event in events[2:5]]
    assert texts == ["Hello", " there", "!"]
    assert events[-2]["usage"]["output_tokens"] == 3
    (verdict,) = live.verdicts
    assert events[-2]["guard"]["request_id"] == verdict.request_id


def test_what_the_policy_says_stands_for_a_cut_answer(launch: Launch) -> None:
    raw = settings()
    raw["policies"]["strict"]["message"] = "No."
    with launch(raw) as live:
        body = post(live, "cut", guard={"policy": "strict"}).json()
        assert (body["content"][0]["text"], body["stop_reason"]) == ("No.", "refusal")
        events = events_of(post(live, "cut", guard={"policy": "strict"}, stream=True))
        assert events[-4]["delta"]["text"] == "No."


def test_tokens_are_counted_without_generating(live: LiveServer) -> None:
    response = post(live, "abcd", path="/count_tokens", max_tokens=..., system="xy")
    assert (response.status_code, response.json()) == (200, {"input_tokens": 7})
    assert not live.service.submitted
    refusal(post(live, "abcd", path="/count_tokens"), 400, "invalid_request_error")


def test_blocked_and_failed_requests_have_anthropics_envelope(live: LiveServer) -> None:
    for stream in (False, True):
        blocked = post(live, "blocked", stream=stream)
        assert refusal(blocked, 400, "invalid_request_error")["code"] == "content_filter"
        assert blocked.json()["guard"]["outcome"] == "blocked"
        assert refusal(post(live, "failing", stream=stream), 500, "api_error")
    last = events_of(post(live, "midway", stream=True))[-1]
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    assert last["error"]["code"] == "guard_failed"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": ...}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"output_format": {"type": "json_object"}}, "output_format.type"),
        ({"output_format": FORM, "output_config": {"format": FORM}}, "output_format"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tools": 2 * [{"name": "f", "input_schema": {}}]}, "tools"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"seed": 1}, "seed"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
         "messages[0].content[0].tool_use_id"),
        ({"messages": [{"role": "user", "content": [
            {"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
         "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]},
         "messages[0].content[0]"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(
    live: LiveServer, body: dict[str, Any], param: str
) -> None:
    assert refusal(post(live, **body), 400, "invalid_request_error")["param"] == param
    assert not live.service.submitted


def test_the_key_is_where_anthropics_clients_put_it(launch: Launch) -> None:
    with launch(settings() | {"keys": [key("any", policies=["strict"])]}) as live:
        assert post(live).status_code == 200
        assert post(live, guard={"policy": "strict"}).status_code == 200
        refusal(post(live, guard={"policy": "watch"}), 403, "permission_error")
        body = {"model": "fake", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
        refusal(live.post("/v1/messages", json=body), 401, "authentication_error")
        refusal(post(live, model="claude-9"), 404, "not_found_error")
