"""What an upstream says is wrong reaches the client, and is no text to classify."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Send

from guard.plans.screens import TextScreen
from server.screening.answers.upstream_errors import WITHHELD
from server.screening.findings import ScreenedText
from server.screening.texts.screener import Screener
from tests.server.proxy.answers.api_streams import events_of, request
from tests.server.proxy.screened import answering, screened, streaming
from tests.server.proxy.stand import Upstream, UpstreamRequest, chat_chunk, send_response

ERROR = {
    "error": {
        "message": "You exceeded your current quota.",
        "type": "insufficient_quota",
        "param": "messages",
        "code": "insufficient_quota",
    }
}
CHAT = "/v1/chat/completions"


def failing(
    body: Any, status: int = 429, media: str = "application/json", **headers: str
) -> Upstream:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        await send_response(send, raw, status=status, media=media, headers=sent)

    return Upstream(respond)


@pytest.mark.parametrize("media", ["application/json", "text/plain"])
def test_status_type_code_message_and_param_arrive(tmp_path: Path, media: str) -> None:
    headers = {"retry_after": "7", "x_ratelimit_remaining_requests": "0"}
    with screened(tmp_path, failing(ERROR, media=media, **headers)) as proxy:
        response = request(proxy, CHAT)
        assert response.status_code == 429
        assert response.json()["error"] == ERROR["error"]
        assert response.json()["guard"]["outcome"] == "pass"
        assert response.headers["retry-after"] == "7"
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
        assert response.headers["content-type"].startswith("application/json")


def test_on_messages_it_is_as_anthropic_has_it(tmp_path: Path) -> None:
    with screened(tmp_path, failing(ERROR)) as proxy:
        told = request(proxy, "/v1/messages").json()
        assert told["type"] == "error"
        assert told["error"] == {
            "type": "rate_limit_error",
            "message": "You exceeded your current quota.",
            "code": "insufficient_quota",
            "param": "messages",
        }
    own = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    with screened(tmp_path, failing(own, 529)) as proxy:
        response = request(proxy, "/v1/messages")
        assert response.status_code == 529
        told = response.json()
        del told["guard"]
        assert told == own


def test_patterns_redact_and_restore_it(tmp_path: Path) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        asked = request.json["messages"][0]["content"]
        error = {"message": f"{asked} and ann@work.com are no models.", "code": "unknown"}
        await send_response(send, {"error": error}, status=404)

    with screened(tmp_path, Upstream(respond), "redact", "restore = true") as proxy:
        chat = [{"role": "user", "content": "joe@home.com"}]
        response = request(proxy, CHAT, messages=chat)
        assert response.status_code == 404
        assert response.json()["error"]["message"] == "joe@home.com and [EMAIL_2] are no models."


def test_words_that_a_pattern_blocks_are_withheld_and_the_rest_is_told(tmp_path: Path) -> None:
    error = {"message": "no forbidden thing here", "type": "x", "code": "y"}
    with screened(tmp_path, failing({"error": error}, 422)) as proxy:
        response = request(proxy, CHAT)
        assert response.status_code == 422
        assert response.json()["error"] == {**error, "message": WITHHELD}


def _classifying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the list of the policy a classifier that fires on every text which it reads."""

    async def read(
        self: Screener, texts: Sequence[str], screens: Sequence[TextScreen], *more: object
    ) -> list[list[ScreenedText]]:
        return [[ScreenedText(screen, 2.0) for screen in screens if text != "hi"] for text in texts]

    monkeypatch.setattr(Screener, "read", read)


def _headed(proxy: Any) -> None:
    plans = proxy.app.context.plans._plans
    for name, plan in plans.items():
        screens = tuple(_as_head(screen) for screen in plan.screens)
        plans[name] = type(plan)(plan.policy, plan.on_error, plan.settings, screens, plan.broken)


def _as_head(screen: TextScreen) -> TextScreen:
    return TextScreen(screen.name, screen.concept, "head", 1.0, screen.action, head=0)


def test_classifiers_do_not_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _classifying(monkeypatch)
    with screened(tmp_path, failing(ERROR), screen='look = ["response"]') as proxy:
        _headed(proxy)
        response = request(proxy, CHAT)
        assert response.json()["error"] == ERROR["error"]
        assert response.json()["guard"]["guards"][0]["score"] is None
    event = b"data: " + json.dumps(ERROR).encode() + b"\n\n"
    with screened(tmp_path, streaming(event), screen='look = ["response"]') as proxy:
        _headed(proxy)
        (_, told), (_, done) = events_of(request(proxy, CHAT, stream=True).text)
        assert told["error"] == ERROR["error"] and done == "[DONE]"
        assert told["guard"]["outcome"] == "pass"
    failed = {
        "type": "response.failed",
        "response": {"id": "r", "status": "failed", "output": [], "error": ERROR["error"]},
    }
    event = b"data: " + json.dumps(failed).encode() + b"\n\n"
    with screened(tmp_path, streaming(event), screen='look = ["response"]') as proxy:
        _headed(proxy)
        ((_, told), _) = events_of(request(proxy, "/v1/responses", stream=True).text)
        assert told["response"] == failed["response"]
    with screened(tmp_path, answering("a text"), screen='look = ["response"]') as proxy:
        _headed(proxy)
        (choice,) = request(proxy, CHAT).json()["choices"]
        assert choice["finish_reason"] == "content_filter", "an answer is read"


def test_an_error_beside_an_answer_is_read_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _classifying(monkeypatch)
    event = {"error": {"message": "a text"}, "choices": [{"index": 0, "delta": {"content": "hi"}}]}
    raw = b"data: " + json.dumps(event).encode() + b"\n\n"
    with screened(tmp_path, streaming(raw), screen='look = ["response"]') as proxy:
        _headed(proxy)
        assert "a text" not in request(proxy, CHAT, stream=True).text


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b"<html><body><h1>502 Bad Gateway</h1></body></html>", "text/html"),
        (b"upstream connect error", "text/plain"),
        (b"{half", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"", "text/html"),
    ],
)
def test_an_error_that_is_no_json_keeps_its_status(tmp_path: Path, body: bytes, media: str) -> None:
    with screened(tmp_path, failing(body, 502, media, retry_after="3", server="x")) as proxy:
        response = request(proxy, CHAT)
        assert response.status_code == 502
        told = response.json()["error"]
        assert told["message"] == "The upstream answered 502 (Bad Gateway)."
        assert (told["type"], told["code"]) == ("server_error", "upstream_error")
        assert response.headers["retry-after"] == "3"
        response = request(proxy, "/v1/messages")
        assert response.json()["error"]["type"] == "api_error"


def test_an_error_that_is_too_long_keeps_its_status(tmp_path: Path) -> None:
    body = {"error": {"message": "x" * 33 * 2**20}}
    with screened(tmp_path, failing(body, 400)) as proxy:
        response = request(proxy, CHAT)
        assert response.status_code == 400
        assert response.json()["error"]["message"] == "The upstream answered 400 (Bad Request)."


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ({"error": {"message": "Too long.", "type": "x", "code": "y"}}, "api_error"),
        ({"error": "Too long."}, "api_error"),
        ({"error": {"message": "Too long.", "code": 429}}, "rate_limit_error"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Too long."}}, ""),
    ],
)
def test_an_error_in_a_stream_of_messages(tmp_path: Path, event: Any, kind: str) -> None:
    raw = b"data: " + json.dumps(event).encode() + b"\n\n"
    with screened(tmp_path, streaming(raw, done=False)) as proxy:
        ((name, told),) = events_of(request(proxy, "/v1/messages", stream=True).text)
        assert name == told["type"] == "error"
        assert told["error"]["message"] == "Too long."
        assert told["error"]["type"] == (kind or "overloaded_error")


def test_an_error_in_a_stream_of_responses(tmp_path: Path) -> None:
    raw = b'data: {"error": {"message": "Too long.", "code": "y"}}\n\n'
    with screened(tmp_path, streaming(raw, done=False)) as proxy:
        ((name, told),) = events_of(request(proxy, "/v1/responses", stream=True).text)
        assert name == told["type"] == "error"
        assert (told["message"], told["code"]) == ("Too long.", "y")


def test_an_upstreams_text_before_its_error_is_delivered(tmp_path: Path) -> None:
    raw = b"data: " + json.dumps(ERROR).encode() + b"\n\n"
    upstream = streaming(chat_chunk({"content": "well"}), raw, done=False)
    with screened(tmp_path, upstream) as proxy:
        (_, chunk), (_, told) = events_of(request(proxy, CHAT, stream=True).text)
        assert chunk["choices"][0]["delta"]["content"] == "well"
        assert told["error"] == ERROR["error"]
