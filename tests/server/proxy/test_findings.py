"""Kinds, confidences and countries of findings, as verdicts tell them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Send

from tests.server.proxy.screened import answering, ask, read_stream
from tests.server.proxy.stand import (
    Proxy,
    Upstream,
    UpstreamRequest,
    chat_completion,
    chat_stream,
    proxied,
    send_response,
    served,
)

POLICY = """
[server]
default_policy = "clean"

[[patterns]]
name = "personal"
source = "personal-data"

[policies.clean]
guards = ["personal"]
action = "redact"
"""
IBAN = "GB82 WEST 1234 5698 7654 32"
TEXT = f"Pay {IBAN}, or DE89370400440532013000 of jane.doe@example.org, twice: jane@example.org."
FOUND = {("IBAN", "GB"), ("IBAN", "DE"), ("EMAIL", None)}


def findings(proxy: Proxy) -> list[dict[str, Any]]:
    (line,) = proxy.audit_lines()
    (guard,) = line["guards"]
    return list(guard["findings"])


def kinds(found: list[dict[str, Any]]) -> set[tuple[str, str | None]]:
    return {(each["kind"], each["country"]) for each in found}


def test_each_kind_is_told_once_with_its_country(tmp_path: Path) -> None:
    upstream = answering("done")
    with served(upstream) as port, proxied(tmp_path, POLICY, port) as proxy:
        guard = ask(proxy, TEXT).json()["guard"]
        found = findings(proxy)
    assert guard["guards"][0]["findings"] == found
    assert kinds(found) == FOUND and len(found) == len(FOUND)
    assert all(0.0 < each["confidence"] <= 1.0 for each in found)
    assert "jane" not in json.dumps(found)


def test_what_fires_in_no_text_has_found_nothing(tmp_path: Path) -> None:
    with served(answering("done")) as port, proxied(tmp_path, POLICY, port) as proxy:
        ask(proxy, "hello")
        assert findings(proxy) == []


def test_a_stream_that_is_read_again_and_again_tells_each_kind_once(tmp_path: Path) -> None:
    upstream = Upstream(chat_stream([f"{word} " for word in f"{TEXT} {TEXT}".split()]))
    with served(upstream) as port, proxied(tmp_path, POLICY, port) as proxy:
        text, _, _ = read_stream(ask(proxy, "hello", stream=True))
        found = findings(proxy)
    assert IBAN not in text
    assert kinds(found) == FOUND and len(found) == len(FOUND)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([{"kind": "IBAN", "confidence": 0.9, "country": "GB", "text": IBAN}], 1),
        ([{"kind": f"Pay {IBAN}", "confidence": 1.0, "country": None}], 0),
        ([{"kind": "IBAN", "confidence": "high", "country": None}, "IBAN", None], 0),
        ([{"kind": f"K{n}", "confidence": 1.0, "country": None} for n in range(99)], 16),
        ("IBAN", 0),
    ],
)
def test_those_of_an_upstream_are_told_without_its_texts(
    tmp_path: Path, told: Any, expected: int
) -> None:
    guard = {"guard": "theirs", "concept": "data/personal", "method": "patterns"}
    guard |= {"score": 1.0, "threshold": 0.5, "fired": True, "action": "redact", "findings": told}
    verdict = {"request_id": "req-1", "model": "m", "policy": "their", "outcome": "redacted"}
    verdict["guards"] = [guard]  # type: ignore[assignment]

    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, {**chat_completion("well"), "guard": verdict})

    with served(Upstream(respond)) as port, proxied(tmp_path, POLICY, port) as proxy:
        answer = ask(proxy, "hello")
    theirs, _ = answer.json()["guard"]["guards"]
    assert theirs["guard"] == "theirs" and len(theirs["findings"]) == expected
    assert IBAN not in answer.text
