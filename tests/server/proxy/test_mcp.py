"""MCP over HTTP through the proxy: what agents send to tools, and what tools return."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Send

from tests.server.proxy.stand import (
    Proxy,
    Upstream,
    UpstreamRequest,
    proxied,
    send_chunk,
    send_head,
    send_response,
    served,
)
from tests.server.screen_configs import EMAIL

CONFIG = """
[server]
default_policy = "p"
[[patterns]]
name = "words"
source = "words.toml"
[[patterns]]
name = "mails"
source = "mails.toml"
[policies.p]
guards = ["words", "mails"]
action = "redact"
[policies.p.screen]
actions = {{ words = "{action}" }}
{screen}
[[upstreams]]
name = "files"
url = "http://127.0.0.1:{port}/server/mcp"
mcp = "/mcp/files"
{more}
"""
BAD = "the forbidden thing"


def reply(request: UpstreamRequest, result: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request.json["id"], "result": result}


def text_result(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "isError": False}


def answering(make: Callable[[UpstreamRequest], Any]) -> Upstream:
    """A server whose results are `make`'s."""

    async def respond(request: UpstreamRequest, send: Send) -> None:
        headers = {"mcp-session-id": "s1"}
        await send_response(send, reply(request, make(request)), headers=headers)

    return Upstream(respond)


def echoing() -> Upstream:
    """A server whose tool returns its argument."""
    return answering(lambda r: text_result(f"got {r.json['params']['arguments']['text']}"))


def streaming(*messages: dict[str, Any], prime: bytes = b"") -> Upstream:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        await send_chunk(send, prime)
        for number, message in enumerate(messages):
            event = f"id: e{number}\nevent: message\ndata: {json.dumps(message)}\n\n"
            await send_chunk(send, event.encode())
        await send_chunk(send, b"", more=False)

    return Upstream(respond)


@contextmanager
def tools(
    folder: Path,
    upstream: Upstream,
    screen: str = "restore = true",
    more: str = "",
    action: str = "block",
) -> Iterator[Proxy]:
    """A proxy in front of a server of tools; `action` is for the words."""
    (folder / "words.toml").write_text('[[words]]\nlabel = "BAD"\nwords = ["forbidden thing"]\n')
    (folder / "mails.toml").write_text(f"[[regex]]\nlabel = \"EMAIL\"\npattern = '{EMAIL}'\n")
    with served(upstream) as port:
        text = CONFIG.format(port=port, screen=screen, more=more, action=action)
        with proxied(folder, text) as proxy:
            yield proxy


def message(method: str, params: dict[str, Any] | None = None, name: Any = 1) -> dict[str, Any]:
    named = {} if name is None else {"id": name}
    return {"jsonrpc": "2.0", **named, "method": method, "params": params or {}}


def call(text: str, name: Any = 1) -> dict[str, Any]:
    return message("tools/call", {"name": "echo", "arguments": {"text": text}}, name)


def post(proxy: Proxy, body: Any, **headers: str) -> httpx.Response:
    accept = {"accept": "application/json, text/event-stream", "mcp-session-id": "s1"}
    url = f"{proxy.url}/mcp/files"
    return httpx.post(url, json=body, headers={**accept, **headers}, timeout=20)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = response.text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_requests_go_to_the_servers_own_url_and_come_back_with_a_verdict(tmp_path: Path) -> None:
    upstream = echoing()
    with tools(tmp_path, upstream) as proxy:
        response = post(proxy, call("hello"))
        assert response.json()["result"]["content"][0]["text"] == "got hello"
        assert response.json()["result"]["_meta"]["guard"]["outcome"] == "pass"
        assert set(response.json()) == {"jsonrpc", "id", "result"}
        assert response.headers["mcp-session-id"] == "s1"
        (request,) = upstream.requests
        assert (request.path, request.json) == ("/server/mcp", call("hello"))
        assert request.header("mcp-session-id") == "s1"
        (line,) = proxy.audit_lines()
        assert (line["outcome"], line["policy"]) == ("pass", "p")
        metrics = httpx.get(f"{proxy.url}/metrics").text
        assert 'path="/mcp/files",status="200"' in metrics
        # models are asked elsewhere, of which there is none
        chat = httpx.post(f"{proxy.url}/v1/chat/completions", json={"model": "m", "messages": []})
        assert chat.json()["error"]["code"] == "model_not_found"


def test_arguments_are_redacted_and_restored_in_what_the_tool_returns(tmp_path: Path) -> None:
    upstream = echoing()
    with tools(tmp_path, upstream) as proxy:
        result = post(proxy, call("mail ann@example.com")).json()["result"]
    assert upstream.requests[0].json["params"]["arguments"] == {"text": "mail [EMAIL_1]"}
    assert result["content"][0]["text"] == "got mail ann@example.com"
    assert result["_meta"]["guard"]["outcome"] == "redacted"


@pytest.mark.parametrize("name", [1, "a-b", 0])
def test_a_blocked_call_is_answered_as_the_model_can_read(tmp_path: Path, name: Any) -> None:
    upstream = echoing()
    with tools(tmp_path, upstream) as proxy:
        response = post(proxy, call(BAD, name))
        assert response.status_code == 200
        assert (response.json()["id"], response.json()["result"]["isError"]) == (name, True)
        assert response.headers["x-guard-verdict"] == "blocked"
        assert proxy.audit_lines()[0]["outcome"] == "blocked"
        other = post(proxy, message("prompts/get", {"name": "x", "arguments": {"a": BAD}}, name))
        assert other.status_code == 200
        assert other.json()["error"]["code"] == -32010 and other.json()["id"] == name
        told = post(proxy, message("notifications/progress", {"message": BAD}, None))
        assert told.status_code == 400 and told.json()["id"] is None
    assert not upstream.requests


@pytest.mark.parametrize(
    "result",
    [
        text_result(BAD),
        {"structuredContent": {"a": [{"b": BAD}]}, "content": []},
        {"structuredContent": {BAD: 1}, "content": []},
        {"content": [{"type": "resource", "resource": {"uri": "file:///a", "text": BAD}}]},
        {"tools": [{"name": "t", "description": BAD, "inputSchema": {"type": "object"}}]},
        {"tools": [{"name": "t", "inputSchema": {"properties": {"a": {"description": BAD}}}}]},
        {"messages": [{"role": "user", "content": {"type": "text", "text": BAD}}]},
        {"contents": [{"uri": "file:///a", "mimeType": "text/plain", "text": BAD}]},
        {"protocolVersion": "2025-06-18", "instructions": BAD},
        {"action": "accept", "content": {"a": BAD}},
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_what_a_server_says_is_read(tmp_path: Path, result: Any, is_stream: bool) -> None:
    answer = {"jsonrpc": "2.0", "id": 1, "result": result}
    upstream = streaming(answer) if is_stream else answering(lambda _: result)
    with tools(tmp_path, upstream) as proxy:
        response = post(proxy, call("hello"))
        assert response.status_code == 200
        (told,) = events(response) if is_stream else [response.json()]
        del told["result"]["_meta"]["guard"]["guards"]
        assert "forbidden" not in json.dumps(told)
        assert told["id"] == 1 and told["result"]["isError"] is True
        assert proxy.audit_lines()[0]["outcome"] == "blocked"


def test_screens_of_tools_read_what_tools_return(tmp_path: Path) -> None:
    for number, (looks, status) in enumerate([('["tool"]', "blocked"), ('["user"]', "pass")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        upstream = answering(lambda _: text_result(BAD))
        with tools(folder, upstream, f"look = {looks}") as proxy:
            result = post(proxy, call(BAD)).json()["result"]
            assert result["_meta"]["guard"]["outcome"] == status
            assert len(upstream.requests) == 1, "arguments are not read at these places"


def test_words_of_the_protocol_are_no_texts(tmp_path: Path) -> None:
    upstream = answering(lambda _: {"protocolVersion": "2025-06-18", "capabilities": {}})
    with tools(tmp_path, upstream) as proxy:
        body = message("tools/list", {"_meta": {"progressToken": 3}}, "id-1")
        assert post(proxy, body).json()["id"] == "id-1"
        assert upstream.requests[0].json == body


def test_each_message_of_a_stream_is_read_by_itself(tmp_path: Path) -> None:
    progress = message("notifications/progress", {"progress": 1, "message": "half"}, None)
    bad = message("notifications/message", {"level": "info", "data": BAD}, None)
    mail = {"jsonrpc": "2.0", "id": 1, "result": text_result("ask joe@example.com")}
    upstream = streaming(progress, bad, mail, prime=b"id: e\nretry: 100\ndata: \n\n")
    with tools(tmp_path, upstream) as proxy:
        first, last = events(post(proxy, call("hello")))
    assert first == progress
    assert last["result"]["content"][0]["text"] == "ask [EMAIL_1]"
    assert last["result"]["_meta"]["guard"]["outcome"] == "blocked"


def test_a_question_of_the_server_that_is_blocked_ends_the_call(tmp_path: Path) -> None:
    ask = message("sampling/createMessage", {"messages": [{"content": {"text": BAD}}]}, 5)
    late = {"jsonrpc": "2.0", "id": 1, "result": text_result("late")}
    with tools(tmp_path, streaming(ask, late)) as proxy:
        (told,) = events(post(proxy, call("hello")))
    assert (told["id"], told["result"]["isError"]) == (1, True)


def test_the_clients_answers_are_read(tmp_path: Path) -> None:
    async def accept(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, b"", status=202)

    upstream = Upstream(accept)
    with tools(tmp_path, upstream) as proxy:
        good = {"jsonrpc": "2.0", "id": 5, "result": {"content": {"type": "text", "text": "a"}}}
        response = post(proxy, good)
        assert (response.status_code, response.content) == (202, b"")
        good["result"]["content"]["text"] = BAD  # type: ignore[index]
        assert post(proxy, good).status_code == 400
    assert len(upstream.requests) == 1


def test_batches_are_read_and_answered_as_batches(tmp_path: Path) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        texts = [(m["id"], m["params"]["arguments"]["text"]) for m in request.json]
        replies = [{"jsonrpc": "2.0", "id": i, "result": text_result(t)} for i, t in texts]
        await send_response(send, json.dumps(replies).encode())

    upstream = Upstream(respond)
    with tools(tmp_path, upstream) as proxy:
        replies = post(proxy, [call("to ann@example.com"), call("b", 2)]).json()
        assert [r["result"]["content"][0]["text"] for r in replies] == ["to ann@example.com", "b"]
        assert upstream.requests[0].json[0]["params"]["arguments"] == {"text": "to [EMAIL_1]"}
        blocked = post(proxy, [call("a"), call(BAD, 2)]).json()
        assert [(r["id"], r["result"]["isError"]) for r in blocked] == [(1, True), (2, True)]
        for content in (b'[1], "more": [2]', b"[1] [2]", b'[1], "batch": [2]', b"[", b"3"):
            refused = httpx.post(
                f"{proxy.url}/mcp/files",
                content=content,
                headers={"content-type": "application/json"},
            )
            assert refused.status_code == 400 and "error" in refused.json()
    assert len(upstream.requests) == 1


def test_who_listens_gets_what_may_pass(tmp_path: Path) -> None:
    good = message("notifications/tools/list_changed", {}, None)
    upstream = streaming(good, message("roots/list", {"a": BAD}, 3), good)
    with tools(tmp_path, upstream) as proxy:
        response = httpx.get(f"{proxy.url}/mcp/files", headers={"accept": "text/event-stream"})
        assert events(response) == [good, good]
        assert httpx.head(f"{proxy.url}/mcp/files/").status_code == 200
        options = httpx.options(f"{proxy.url}/mcp/files")
        assert options.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, POST"


def test_a_session_is_ended(tmp_path: Path) -> None:
    async def end(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, b"", status=200)

    upstream = Upstream(end)
    with tools(tmp_path, upstream) as proxy:
        response = httpx.delete(f"{proxy.url}/mcp/files", headers={"mcp-session-id": "s1"})
    assert response.status_code == 200
    assert (upstream.requests[0].method, upstream.requests[0].body) == ("DELETE", b"")


def test_a_screen_that_would_send_the_request_elsewhere_blocks_it(tmp_path: Path) -> None:
    upstream = echoing()
    with tools(tmp_path, upstream, 'upstream_policy = "strict"', action="policy") as proxy:
        assert post(proxy, call(BAD)).json()["result"]["isError"] is True
    assert not upstream.requests


def test_headers_repeat_what_the_body_has(tmp_path: Path) -> None:
    coded = base64.b64encode("grüß ann@example.com".encode()).decode()
    upstream = echoing()
    with tools(tmp_path, upstream) as proxy:
        mirrored = {"mcp-name": "echo", "mcp-param-text": "ann@example.com"}
        assert post(proxy, call("ann@example.com"), **mirrored).status_code == 200
        assert upstream.requests[-1].header("mcp-param-text") == "[EMAIL_1]"
        assert upstream.requests[-1].header("mcp-name") == "echo"
        mirrored = {"mcp-param-text": f"=?base64?{coded}?="}
        assert post(proxy, call("grüß ann@example.com"), **mirrored).status_code == 200
        shown = upstream.requests[-1].header("mcp-param-text") or ""
        assert base64.b64decode(shown[9:-2]).decode() == "grüß [EMAIL_1]"
        for header in ("mcp-param-text", "mcp-name", "mcp-param-other"):
            refused = post(proxy, call("hello"), **{header: "ann@example.com"})
            assert refused.status_code == 400
            assert refused.json()["error"]["data"]["code"] == "unscreened_content"
    assert len(upstream.requests) == 2


def test_keys_and_credentials_are_as_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLS_KEY", "sk-tools")
    digest = hashlib.sha256(b"sk-mine").hexdigest()
    more = (
        'key_env = "TOOLS_KEY"\n[[keys]]\n'
        f'hash = "sha256:{digest}"\ntenant = "me"\ndefault_policy = "p"\n'
    )
    upstream = echoing()
    with tools(tmp_path, upstream, more=more) as proxy:
        assert post(proxy, call("hello")).status_code == 401
        assert post(proxy, call("hello"), authorization="Bearer sk-mine").status_code == 200
    assert upstream.requests[0].header("authorization") == "Bearer sk-tools"


def test_a_server_that_is_down_is_an_error_of_json_rpc(tmp_path: Path) -> None:
    with tools(tmp_path, echoing()) as proxy:
        text = (tmp_path / "config.toml").read_text()
    with proxied(tmp_path, text) as proxy:
        response = post(proxy, call("hello", 4))
    assert response.status_code == 502
    told = response.json()
    assert (told["id"], told["error"]["data"]["code"]) == (4, "upstream_unreachable")
