"""Policies and verdicts in vLLM's HTTP server, around an app that stands for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.vllm.http.call import current_call
from server.vllm.http.middleware import HttpGuard
from server.vllm.policies import Policies
from server.vllm.recording import Recording
from tests.server.vllm.test_front import SCREENED, policies, save

MESSAGE = "Not here."
JSON = "application/json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("http")
    save(made, "hp", 0)
    save(made, "med", 1)
    yield made


@pytest.fixture(scope="module")
def available(folder: Path) -> Policies:
    ended = f'[policies.ended]\nguards = ["hp"]\naction = "block"\nmessage = "{MESSAGE}"\n'
    return policies(folder, "watch", ended)


def asked(
    app: ASGIApp,
    policies: Policies,
    body: bytes,
    headers: dict[str, str] | None = None,
    path: str = "/v1/completions",
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request by POST."""
    engine = SimpleNamespace(input_processor=SimpleNamespace(guard=policies))
    given = {"content-type": JSON, **(headers or {})}
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
        "app": SimpleNamespace(state=SimpleNamespace(engine_client=engine)),
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(HttpGuard(app, Recording())(scope, receive, send))
    told = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], told, b"".join(message["body"] for message in sent[1:])


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the policy of the call, and the body that it has been given."""
    call, body = current_call.get(), (await receive())["body"]
    assert call is not None
    said = {"policy": call.policy, "named": call.is_named, "body": body.decode()}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})


def named(policies: Policies, body: bytes, headers: dict[str, str] | None = None) -> Any:
    """The policy that the app inside knows, or the message of the refusal."""
    status, _, raw = asked(echo, policies, body, headers)
    reply = json.loads(raw)
    return reply["policy"] if status == 200 else reply["error"]["message"]


NAMES = st.one_of(st.none(), st.sampled_from(["hp", "watch", "ghost"]))


@given(st.tuples(NAMES, NAMES, NAMES))
def test_all_places_name_one_policy(available: Policies, given: tuple[str | None, ...]) -> None:
    header, member, extra = given
    body: dict[str, Any] = {"prompt": "x"}
    body |= {"guard": {"policy": member}} if member else {}
    body |= {"vllm_xargs": {"guard_policy": extra}} if extra else {}
    headers = {"X-Guard-Policy": header} if header else {}
    said = named(available, json.dumps(body).encode(), headers)
    names = {name for name in given if name}
    if len(names) > 1:
        assert "several policies" in said
    elif names == {"ghost"}:
        assert "there is no policy 'ghost' here: use one of" in said
    else:
        assert said == (names or {"watch"}).pop()


@pytest.mark.parametrize(
    "body",
    [
        b'{"\\u0067uard": {"policy": "hp"}}',
        b'{"gu\\u0061rd": {"p\\u006flicy": "hp"}}',
        b'{"vllm_xargs": {"\\u0067\\u0075\\u0061\\u0072\\u0064_policy": "hp"}}',
        b' {"a": {"guard": {"policy": "watch"}}, "guard":{"policy":"hp"} } ',
    ],
)
def test_a_name_is_read_however_it_is_spelled(available: Policies, body: bytes) -> None:
    assert named(available, body) == "hp"


@pytest.mark.parametrize(
    "body",
    [
        b'{"guard": "hp"}',
        b'{"guard": []}',
        b'{"guard": {"policy": null}}',
        b'{"guard": {"policy": ["hp"]}}',
        b'{"guard": {"polices": "hp"}}',
        b'{"vllm_xargs": {"guard_policy": 7}}',
        b'{"guard": {"policy": "hp"}, "guard": {"policy": "watch"}}',
        b'["guard"]',
        b'{"guard": ',
    ],
)
def test_what_is_no_name_is_refused(available: Policies, body: bytes) -> None:
    status, _, raw = asked(echo, available, body)
    assert status == 400 and json.loads(raw)["error"]["type"] == "invalid_request_error"
    status, _, raw = asked(echo, available, body, path="/v1/messages")
    assert status == 400 and json.loads(raw)["type"] == "error"


def test_vllm_gets_the_body_without_what_is_ours(available: Policies) -> None:
    _, headers, raw = asked(echo, available, b'{"prompt": "x", "guard": {"policy": "hp"}}')
    assert json.loads(json.loads(raw)["body"]) == {"prompt": "x"}
    assert headers["x-guard-policy"] == "hp"
    # and where nothing is ours, the very same
    plain = b'{ "prompt": "x", "prompt": NaN'
    assert json.loads(asked(echo, available, plain)[2])["body"] == plain.decode()


def test_a_body_that_is_screened_is_bounded(folder: Path) -> None:
    available = policies(folder, "read", SCREENED)
    long = b'{"prompt": "' + b"x" * 2**20 + b'"}'
    assert asked(echo, available, long)[0] == 413


def guarded(reply: Any, media: bytes = b"application/json", *, blocked: bool = True) -> ASGIApp:
    """An app whose answer a guard has read, or ended."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        call = current_call.get()
        assert call is not None
        verdict = {"outcome": "blocked" if blocked else "pass", "policy": call.policy}
        call.add(call.add_prompt(1), verdict, is_blocked=blocked)
        body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        headers = [(b"content-type", media), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


CHAT = {"object": "chat.completion", "choices": [{"index": 0, "message": {"content": "a"}}]}
TEXT = {"object": "text_completion", "choices": [{"index": 0, "text": "a"}]}
RESPONSE = {"object": "response", "status": "completed", "output": [{"type": "message"}]}
ANTHROPIC = {"type": "message", "content": [{"type": "text", "text": "a"}], "stop_reason": None}


@pytest.mark.parametrize("reply", [CHAT, TEXT, RESPONSE, ANTHROPIC])
@pytest.mark.parametrize("policy", ["ended", "hp", "pass"])
def test_a_whole_answer_that_a_guard_has_ended(
    available: Policies, reply: dict[str, Any], policy: str
) -> None:
    name = "ended" if policy == "pass" else policy
    app = guarded(reply, blocked=policy != "pass")
    _, headers, raw = asked(app, available, b"{}", {"X-Guard-Policy": name})
    answer = json.loads(raw)
    assert answer.pop("guard") == {"outcome": headers["x-guard-verdict"], "policy": name}
    assert int(headers["content-length"]) == len(raw)
    assert (MESSAGE in raw.decode()) == (policy == "ended")
    ends = [answer.get("status"), answer.get("stop_reason")]
    if policy != "pass" and "choices" not in reply:
        assert "incomplete" in ends or "refusal" in ends
    else:
        for choice in answer.get("choices", ()):
            choice.pop("guard")
        assert policy != "pass" or answer == reply


def test_the_end_of_a_stream_that_a_guard_has_ended(available: Policies) -> None:
    completed = {"type": "response.completed", "response": RESPONSE, "sequence_number": 7}
    stream = b"event: response.completed\ndata: " + json.dumps(completed).encode() + b"\n\n"
    app = guarded(stream, b"text/event-stream; charset=utf-8")
    _, _, raw = asked(app, available, b"{}", {"X-Guard-Policy": "ended"})
    name, data = raw.decode().split("\n")[:2]
    event = json.loads(data[6:])
    assert name == "event: response.incomplete" and event["type"] == "response.incomplete"
    assert event["response"]["incomplete_details"] == {"reason": "content_filter"}
    assert event["response"]["guard"]["outcome"] == "blocked"
    chunk = {
        "choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": "content_filter"}]
    }
    stream = b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
    app = guarded(stream, b"text/event-stream; charset=utf-8")
    _, _, raw = asked(app, available, b"{}", {"X-Guard-Policy": "ended"})
    (choice,) = json.loads(raw[6:])["choices"]
    assert choice["delta"] == {"content": MESSAGE} and choice["guard"]["outcome"] == "blocked"
