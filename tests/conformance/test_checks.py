"""The checks of the matrix can fail, and the report says what did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conformance.clients import CLIENTS
from tests.conformance.features import (
    FEATURES,
    NONE,
    PRIVATE,
    Seen,
    Wrong,
    blocked,
    failed,
    greeted,
    repeated,
)
from tests.conformance.report import OK, Cell, failures, write_page
from tests.conformance.upstream.answers import ADDRESS, CARD, GREETING, SECRET, sentence
from tests.conformance.upstream.stub import Stub
from tests.server.proxy.stand import UpstreamRequest

CHAT = CLIENTS[0]


def seen(result: dict[str, Any], policy: str = PRIVATE, received: str = "") -> Seen:
    stub = Stub()
    if received:
        body = f'{{"text": "{received}"}}'.encode()
        stub.app.requests.append(UpstreamRequest("POST", "/v1/chat/completions", [], body))
    return Seen(CHAT, policy, result, stub)


def error(status: int, name: str, **told: object) -> dict[str, Any]:
    classes = [name, "APIStatusError"]
    return {"error": {"classes": classes, "message": "no", "status_code": status, **told}}


@pytest.mark.parametrize(
    ("check", "case"),
    [
        (greeted, seen({"text": GREETING + "."})),
        (greeted, seen({"text": GREETING, "finish": "content_filter"})),
        (greeted, seen({"text": GREETING, "finish": "stop", "tokens": None})),
        (greeted, seen(error(500, "InternalServerError"))),
        (repeated, seen({"text": sentence("[EMAIL_1]", "[CREDIT_CARD_1]")}, received="[EMAIL_1]")),
        (repeated, seen({"text": sentence(ADDRESS, CARD)}, received=f"{ADDRESS} [CREDIT_CARD_1]")),
        (repeated, seen({"text": sentence(ADDRESS, CARD)}, NONE, received="[EMAIL_1]")),
        (blocked, seen(error(400, "BadRequestError", code="content_filter"))),
        (blocked, seen({"text": "", "finish": "stop"})),
        (blocked, seen({"text": SECRET, "finish": "content_filter"})),
        (failed(429), seen(error(429, "APIError", code="rate_limit_exceeded"))),
        (failed(429), seen(error(429, "RateLimitError", code="content_filter"))),
    ],
)
def test_what_is_not_right_is_seen(check: Any, case: Seen) -> None:
    with pytest.raises(Wrong):
        check(case)


def test_what_is_right_passes() -> None:
    greeted(seen({"text": GREETING, "finish": "stop", "tokens": 18}))
    repeated(seen({"text": sentence(ADDRESS, CARD)}, received="[EMAIL_1] [CREDIT_CARD_1]"))
    blocked(seen({"text": "", "finish": "content_filter"}))


def test_what_a_client_lacks_is_a_feature_that_is_tried_with_others() -> None:
    names = {feature.name for feature in FEATURES}
    for client in CLIENTS:
        assert client.lacks.keys() <= names


def test_a_page_shows_what_failed(tmp_path: Path) -> None:
    cells = [
        Cell("a (chat)", "1", NONE, "text", OK, holds=True),
        Cell("a (chat)", "1", NONE, "embeddings", "not offered by this client", holds=True),
        Cell("a (chat)", "1", NONE, "tool call", "no\nname", holds=False),
    ]
    write_page(cells, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| a (chat) 1 | ok | – | **no** |" in page
    assert failures(cells) == ["- a (chat) 1, `none`, tool call: no name"]
    assert failures(cells)[0] in page
