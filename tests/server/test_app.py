from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest

from tests.server.live_server import Launch, LiveServer, key, live_server, settings

CHAT = "/v1/chat/completions"
HEADERS = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"model": NaN}', b'{"model": "\xff"}', b"[" * 100_000, b"\x00" * 64],
)
def test_bodies_that_are_not_json_objects_are_bad_requests(live: LiveServer, body: bytes) -> None:
    for path in (CHAT, "/v1/completions"):
        response = live.post(path, content=body, headers=HEADERS)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "invalid_json"
        assert response.headers["X-Request-Id"]


def test_another_content_type_is_refused(live: LiveServer) -> None:
    response = live.post(CHAT, content=b"{}", headers={"Content-Type": "text/plain"})
    assert response.status_code == 415


def test_validation_errors_name_their_parameter(live: LiveServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        live.client().chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "x"}], frequency_penalty=3
        )
    assert caught.value.param == "frequency_penalty"
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("guard", "param", "code", "says"),
    [
        ("say", "guard", "invalid_parameter", '{"policy": NAME}'),
        (["say"], "guard", "invalid_parameter", '{"policy": NAME}'),
        ({"polcy": "say"}, "guard.polcy", "unknown_parameter", "guard.polcy"),
        ({}, "guard.policy", "missing_required_parameter", "guard.policy"),
    ],
)
def test_a_wrong_guard_says_what_it_is(
    live: LiveServer, guard: Any, param: str, code: str, says: str
) -> None:
    error = live.chat(guard=guard).json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert says in error["message"] and "GuardOptions" not in error["message"]


def test_more_tokens_than_the_server_allows_are_refused(live: LiveServer) -> None:
    response = live.chat(max_tokens=2049)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "max_tokens"


def test_a_body_too_long_is_refused_on_its_announcement(live: LiveServer) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 10000000000\r\n\r\n{"
        )
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 413") and b"request_too_large" in answer


def test_a_body_that_turns_out_too_long_is_not_read_to_its_end(live: LiveServer) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 200_000_000:
            sent += 65536
            yield b" " * 65536

    # The connection is closed while the client still writes: it may see nothing but that.
    with suppress(httpx.TransportError):
        assert live.post(CHAT, content=endless(), headers=HEADERS).status_code == 413
    assert sent < 50_000_000
    assert live.chat().status_code == 200


def test_unknown_urls_and_methods_have_openais_envelope(live: LiveServer) -> None:
    missing = httpx.get(f"{live.url}/v1/nothing")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "unknown_url"
    wrong = httpx.get(f"{live.url}{CHAT}")
    assert wrong.status_code == 405 and wrong.headers["Allow"] == "OPTIONS, POST"
    assert wrong.json()["error"]["code"] == "method_not_allowed"
    assert httpx.get(f"{live.url}/v1/models/").json() == httpx.get(f"{live.url}/v1/models").json()


def test_models_are_listed_and_found(live: LiveServer) -> None:
    client = live.client()
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "inference-guard"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("some/other")


def test_policies_are_listed_with_the_models_that_have_them(live: LiveServer) -> None:
    listed = httpx.get(f"{live.url}/guard/v1/policies").json()
    assert listed["default"] == "none"
    assert [(policy["id"], policy["models"]) for policy in listed["data"]] == [
        ("none", ["fake"]), ("strict", ["fake"]), ("watch", []),
    ]  # fmt: skip


@pytest.mark.parametrize("offered", ["abc-1", "a" * 128])
def test_a_plain_request_id_is_kept(live: LiveServer, offered: str) -> None:
    response = httpx.get(f"{live.url}/health", headers={"X-Request-Id": offered})
    assert response.headers["X-Request-Id"] == offered


@pytest.mark.parametrize("offered", ["", "a b", "a" * 129, '"};', "é".encode(), "-x"])
def test_any_other_request_id_is_replaced(live: LiveServer, offered: Any) -> None:
    response = httpx.get(f"{live.url}/health", headers={"X-Request-Id": offered})
    assert response.headers["X-Request-Id"].startswith("req-")


def test_policy_comes_from_header_or_body_but_not_from_both(live: LiveServer) -> None:
    messages = [{"role": "user", "content": "x"}]
    body: dict[str, Any] = {"model": "fake", "messages": messages}
    strict = {"X-Guard-Policy": "strict"}
    assert live.post(CHAT, json=body, headers=strict).headers["X-Guard-Policy"] == "strict"
    body["guard"] = {"policy": "strict"}
    assert live.post(CHAT, json=body, headers=strict).status_code == 200
    body["guard"] = {"policy": "watch"}
    assert live.post(CHAT, json=body).headers["X-Guard-Policy"] == "watch"
    assert live.post(CHAT, json=body, headers=strict).status_code == 400
    body["guard"] = {"policy": "nope"}
    unknown = live.post(CHAT, json=body)
    assert unknown.status_code == 400
    assert unknown.json()["error"]["code"] == "unknown_policy"
    assert "X-Guard-Policy" not in unknown.headers


def test_health_readiness_and_metrics_agree_with_the_traffic(launch: Launch) -> None:
    with launch() as live:
        assert httpx.get(f"{live.url}/health").json() == {"status": "ok"}
        assert httpx.get(f"{live.url}/ready").status_code == 200
        live.chat("cut", n=2)
        live.chat(guard={"policy": "strict"})
        live.chat("failing")
        httpx.get(f"{live.url}/no/such/thing")
        text = httpx.get(f"{live.url}/metrics").text
        for line in (
            'inference_guard_requests_total{path="/v1/chat/completions",status="200"} 2.0',
            'inference_guard_requests_total{path="/v1/chat/completions",status="500"} 1.0',
            'inference_guard_requests_total{path="unknown",status="404"} 1.0',
            'inference_guard_tokens_total{kind="completion",model="fake"} 9.0',
            'inference_guard_tokens_total{kind="prompt",model="fake"} 5.0',
            'inference_guard_verdicts_total{model="fake",outcome="steered",policy="none"} 2.0',
            'inference_guard_verdicts_total{model="fake",outcome="pass",policy="strict"} 1.0',
            'inference_guard_fired_total{action="steer",guard="books"} 2.0',
            'inference_guard_guard_failures_total{guard="books"} 1.0',
            'inference_guard_queued_rows{model="fake"} 3.0',
            'inference_guard_ready{model="fake"} 1.0',
        ):
            assert line in text
        live.service.closed = 1
        assert httpx.get(f"{live.url}/ready").status_code == 503
        assert 'inference_guard_ready{model="fake"} 0.0' in httpx.get(f"{live.url}/metrics").text


@pytest.fixture(scope="module")
def keyed() -> Iterator[LiveServer]:
    raw = settings(default_policy="watch")
    raw["keys"] = [
        key("alpha", default_policy="strict", policies=["strict"]),
        key("beta", policies=["none"], requests_per_minute=2),
        key("gamma"),
    ]
    with live_server(raw) as live:
        yield live


def policy_of(live: LiveServer, secret: str, **headers: str) -> str:
    raw = live.client(secret).chat.completions.with_raw_response.create(
        model="fake", messages=[{"role": "user", "content": "x"}], extra_headers=headers
    )
    return raw.headers["X-Guard-Policy"]


def test_without_a_known_key_everything_is_refused(keyed: LiveServer) -> None:
    for path in ("/v1/models", "/v1/models/fake", "/guard/v1/policies"):
        assert httpx.get(f"{keyed.url}{path}").status_code == 401
    for scheme in ("", "Basic alpha", "Bearer", "Bearer nope", "Bearer é"):
        headers = {"Authorization": scheme.encode(), "Content-Type": "application/json"}
        response = keyed.post(CHAT, content=b"not even json", headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError) as caught:
        policy_of(keyed, "nope")
    assert caught.value.code == "invalid_api_key"
    for path in ("/health", "/ready", "/metrics"):
        assert httpx.get(f"{keyed.url}{path}").status_code == 200


def test_a_key_sets_the_default_and_the_allowed_policies(keyed: LiveServer) -> None:
    assert policy_of(keyed, "alpha") == "strict"
    assert policy_of(keyed, "gamma") == "watch"
    assert policy_of(keyed, "gamma", **{"X-Guard-Policy": "watch"}) == "watch"
    assert keyed.service.submitted[0].tenant == "acme"
    for other in ("none", "watch"):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            policy_of(keyed, "alpha", **{"X-Guard-Policy": other})
        assert caught.value.code == "policy_forbidden"
    listed = httpx.get(
        f"{keyed.url}/guard/v1/policies", headers={"Authorization": "Bearer alpha"}
    ).json()
    assert listed["default"] == "strict"
    assert [policy["id"] for policy in listed["data"]] == ["strict"]


def test_a_key_over_its_rate_gets_retry_after(keyed: LiveServer) -> None:
    assert policy_of(keyed, "beta", **{"X-Guard-Policy": "none"}) == "none"
    assert policy_of(keyed, "beta") == "watch"
    with pytest.raises(openai.RateLimitError) as caught:
        policy_of(keyed, "beta")
    assert int(caught.value.response.headers["Retry-After"]) > 0
    assert policy_of(keyed, "alpha") == "strict"
