"""A match that is longer than what is held back leaves neither as it is nor in parts."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from classifiers.text.patterns.matching import shipped
from guard.config.policy_schema import ScreenConfig
from guard.plans.screens import TextPlan, TextScreen
from server.screening.answers.app_verdicts import TakenVerdicts
from server.screening.findings import Findings, ScreenedText
from server.screening.streams.formats.choices import ChatFormat
from server.screening.streams.guard import StreamGuard
from server.screening.streams.hold_back import Span
from server.screening.texts.redaction import Placeholders

SCREENS = (
    TextScreen("secrets", "c", "patterns", 1.0, "redact", patterns=shipped("secrets")),
    TextScreen("personal", "c", "patterns", 1.0, "redact", patterns=shipped("personal-data")),
)
PROSE = "nothing to see here, all is well and good. "
LINES = base64.b64encode(random.Random(0).randbytes(2000)).decode()
KEY = "\n".join(
    [
        "-----BEGIN RSA PRIVATE KEY-----",
        *(LINES[place : place + 64] for place in range(0, len(LINES), 64)),
        "-----END RSA PRIVATE KEY-----",
    ]
)
TOKEN = f"eyJhbGciOiJIUzI1NiJ9.eyJ{LINES[:900].translate({43: 45, 47: 95})}.{'a1B2c3d4' * 10}"


class _Reader:
    def __init__(self, findings: Findings) -> None:
        self._findings = findings

    async def read(
        self, texts: Sequence[str], screens: Sequence[TextScreen], tail: int | None = None
    ) -> list[list[ScreenedText]]:
        return [[self._read(text, screen) for screen in screens] for text in texts]

    def _read(self, text: str, screen: TextScreen) -> ScreenedText:
        assert screen.patterns is not None
        matches = screen.patterns.find(text)
        spans = tuple(Span(match.start, match.end, match.label) for match in matches)
        return ScreenedText(screen, float(bool(spans)), spans)

    def guard_object(self) -> dict[str, Any]:
        return {"outcome": self._findings.outcome}

    def put_back(self, verdicts: TakenVerdicts, body: dict[str, Any]) -> None:
        verdicts.put_back(body, "full", "pass")

    def take_verdicts(self, body: dict[str, Any]) -> TakenVerdicts:
        return TakenVerdicts(body)


def guarded() -> StreamGuard:
    plan = TextPlan("p", "closed", ScreenConfig(hold_back_chars=200), SCREENS, {})
    findings = Findings(plan)
    return StreamGuard(
        *(ChatFormat(), findings, _Reader(findings), Placeholders([])),
        choices=1,
        own_app=False,
        event_limit=2**20,
    )


def framed(delta: dict[str, Any]) -> bytes:
    event = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
    return f"data: {json.dumps(event)}\n\n".encode()


def streamed(text: str, step: int) -> str:
    """The text that leaves, where `step` characters of it come at a time."""
    guard = guarded()

    async def through() -> bytes:
        out = b""
        for place in range(0, len(text), step):
            out += await guard.feed(framed({"content": text[place : place + step]}))
        return out + await guard.feed(b"data: [DONE]\n\n") + await guard.end()

    sent = asyncio.run(through()).decode().split("\n\n")
    events = [json.loads(event[6:]) for event in sent if event.startswith("data: {")]
    choices = [choice for event in events for choice in event.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("step", [7, 300])
@pytest.mark.parametrize("secret", [KEY, TOKEN], ids=["private key", "token"])
def test_no_part_of_a_long_secret_leaves(secret: str, step: int) -> None:
    sent = streamed(f"Here it is:\n{secret}\nThen restart. {PROSE}", step)
    pieces = {secret[place : place + 16] for place in range(0, len(secret) - 16, 16)}
    assert not [piece for piece in pieces if piece in sent]
    assert "Then restart." in sent


@pytest.mark.parametrize("step", [7, 300])
@pytest.mark.parametrize("sentences", [10, 20, 150])
def test_what_is_encoded_in_a_long_run_cannot_be_decoded(sentences: int, step: int) -> None:
    words = f"{PROSE * sentences}write to joe.bloggs@example.com today {PROSE * 2}"
    sent = streamed(f"It is: {base64.b64encode(words.encode()).decode()} done.", step)
    address = [base64.b64encode(f"{'x' * skip}joe.bloggs@".encode())[4:12] for skip in range(3)]
    assert not [part for part in address if part.decode() in sent]
    assert sent.endswith(" done.")


def test_the_name_of_a_tool_does_not_wait_for_more_once_its_arguments_come() -> None:
    guard = guarded()

    async def called(**function: str) -> bytes:
        return await guard.feed(framed({"tool_calls": [{"index": 0, "function": function}]}))

    async def through() -> None:
        assert b"write_file" not in await called(name="write_file", arguments="")
        assert b"write_file" in await called(arguments='{"path": "a b c')
        assert b"path" in await called(arguments=' d", ')

    asyncio.run(through())
