"""Requests beside the body of a chat: no body, a query, an upgrade."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.server.proxy.screened import answering, screened


def test_a_request_without_a_body_has_nothing_to_be_read(tmp_path: Path) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream) as proxy:
        response = httpx.post(f"{proxy.url}/v1/responses/r1/cancel")
        assert response.status_code == 200
        assert upstream.requests[0].body == b""


@pytest.mark.parametrize("query", ["after=the+forbidden+thing", "forbidden%20thing=1"])
def test_a_query_is_read(tmp_path: Path, query: str) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream) as proxy:
        assert httpx.get(f"{proxy.url}/v1/models?{query}").status_code == 400
        assert httpx.get(f"{proxy.url}/v1/models?limit=20&after=x").status_code == 200
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("path", ["/v1/responses/input_tokens", "/v1/responses/compact"])
def test_other_routes_of_responses_are_read(tmp_path: Path, path: str) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream) as proxy:
        for text, status in (("hello", 200), ("the forbidden thing", 400)):
            response = httpx.post(proxy.url + path, json={"model": "m", "input": text})
            assert response.status_code == status
        assert len(upstream.requests) == 1


def test_a_websocket_is_refused_in_words(tmp_path: Path) -> None:
    upstream = answering("ok")
    headers = {"connection": "upgrade", "upgrade": "websocket"}
    with screened(tmp_path, upstream) as proxy:
        for policy in ("p", "none"):
            response = httpx.get(
                f"{proxy.url}/v1/realtime", headers={**headers, "x-guard-policy": policy}
            )
            assert response.json()["error"]["code"] == "unsupported_upgrade"
        assert not upstream.requests
