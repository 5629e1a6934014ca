"""The checks of the matrix can fail, and the report says what did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conformance import scripted_model
from tests.conformance.clients import CLIENTS
from tests.conformance.report import OK, Cell, failures, write_page
from tests.conformance.seen import NONE, PRIVATE, Wrong
from tests.conformance.upstream.answers import ADDRESS, CARD, GREETING, SECRET, sentence
from tests.conformance.upstream.stub import Stub
from tests.conformance.ways import served_features
from tests.conformance.ways.proxied_features import (
    FEATURES,
    Through,
    blocked,
    failed,
    greeted,
    repeated,
)
from tests.conformance.ways.served_features import At
from tests.server.proxy.stand import UpstreamRequest

CHAT = CLIENTS[0]


def seen(result: dict[str, Any], policy: str = PRIVATE, received: str = "") -> Through:
    stub = Stub()
    if received:
        body = f'{{"text": "{received}"}}'.encode()
        stub.app.requests.append(UpstreamRequest("POST", "/v1/chat/completions", [], body))
    return Through(CHAT, policy, result, stub)


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
def test_what_is_not_right_is_seen(check: Any, case: Through) -> None:
    with pytest.raises(Wrong):
        check(case)


def test_what_is_right_passes() -> None:
    greeted(seen({"text": GREETING, "finish": "stop", "tokens": 18}))
    repeated(seen({"text": sentence(ADDRESS, CARD)}, received="[EMAIL_1] [CREDIT_CARD_1]"))
    blocked(seen({"text": "", "finish": "content_filter"}))


def at(
    result: dict[str, Any],
    verdicts: list[dict[str, Any]] | None = None,
    *,
    is_scripted: bool = False,
) -> At:
    return At(CHAT, NONE, result, lambda: verdicts or [], is_scripted)


@pytest.mark.parametrize(
    ("check", "result"),
    [
        (served_features.answered, {"text": ""}),
        (served_features.answered, {"text": "x", "finish": "content_filter"}),
        (served_features.answered, {"text": "x", "tokens": None}),
        (served_features.called, {"name": "send_mail", "arguments": {"to": "x"}}),
        (served_features.wrote_object, {"object": {"name": 1}}),
        (served_features.embedded, {"vector": [0.5, 0.5]}),
        (served_features.drawn, {"image": "AAAA"}),
        (served_features.listed, {"names": ["another"]}),
        (served_features.refused, {"text": "x"}),
        (served_features.too_long, error(400, "BadRequestError", code="invalid_parameter")),
        (served_features.limited, error(429, "RateLimitError", retry_after="0")),
    ],
)
def test_what_is_not_right_of_a_served_model_is_seen(check: Any, result: dict[str, Any]) -> None:
    with pytest.raises(Wrong):
        check(at(result))


def test_what_is_right_of_a_served_model_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    served_features.answered(at({"text": "x", "finish": "length", "tokens": 9}))
    served_features.answered(at({"text": scripted_model.GREETING}, is_scripted=True))
    with pytest.raises(Wrong):
        served_features.answered(at({"text": scripted_model.GREETING[1:]}, is_scripted=True))
    mail = {"to": "a", "text": "b", "copies": 1}
    served_features.called(at({"name": "send_mail", "arguments": mail}))
    served_features.embedded(at({"vector": [0.6, 0.8]}))
    told = error(429, "RateLimitError", code="rate_limit_exceeded", retry_after="2")
    served_features.limited(at(told))
    served_features.hung_up(at({"text": "x"}, [{"outcome": "pass"}]))
    monkeypatch.setattr(served_features, "_ENDED_S", 0.0)
    with pytest.raises(Wrong, match="still runs"):
        served_features.hung_up(at({"text": "x"}))


def test_what_a_client_lacks_is_a_feature_that_is_tried_with_others() -> None:
    names = {feature.name for feature in (*FEATURES, *served_features.FEATURES)}
    for client in CLIENTS:
        assert client.lacks.keys() <= names


def test_a_page_shows_what_failed(tmp_path: Path) -> None:
    cells = [
        Cell("a (chat)", "1", "proxy", NONE, "text", OK, holds=True),
        Cell(
            "a (chat)", "1", "proxy", NONE, "embeddings", "not offered by this client", holds=True
        ),
        Cell("a (chat)", "1", "proxy", NONE, "tool call", "no\nname", holds=False),
    ]
    write_page(cells, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| a (chat) 1 | ok | – | **no** |" in page
    assert failures(cells) == ["- proxy: a (chat) 1, `none`, tool call: no name"]
    assert failures(cells)[0] in page
