"""Entities in the texts of requests: chunks, turns, failures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from classifiers.text.entities.chunks import SIZE
from classifiers.text.entities.recognizer import EntityRecognizer
from classifiers.text.patterns.matching import PatternSet
from guard.config.policy_schema import ScreenConfig
from guard.errors import GuardFailed
from guard.plans.screens import TextPlan, TextScreen
from server.observe.exchange import Exchange
from server.screening.bodies.texts import JsonText
from server.screening.errors import TextTooLong
from server.screening.exchange import ScreenedExchange
from server.screening.findings import Findings, ScreenedText
from server.screening.texts.joins import read_crossing
from server.screening.texts.screener import MAX_ENCODED_BYTES, Screener
from server.screening.texts.turns import Caller

NAME = "Ada"


class _Model:
    """Finds "Ada", and "AdaAda" where nothing parts them."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.fault: Exception | None = None

    def __call__(self, text: str) -> list[Any]:
        self.read.append(text)
        if self.fault is not None:
            raise self.fault
        found, at = [], text.find(NAME)
        while at >= 0:
            end = at
            while text.startswith(NAME, end):
                end += len(NAME)
            found.append(SimpleNamespace(entity_type="PERSON", start=at, end=end, score=0.9))
            at = text.find(NAME, end)
        return found


def _run(work: Callable[[Screener, TextScreen, _Model], Awaitable[None]]) -> None:
    async def run() -> None:
        model, screener = _Model(), Screener(None)
        entities = EntityRecognizer(model, ["PERSON"])
        try:
            await work(
                screener,
                TextScreen("names", "c", "entities", 1.0, "redact", entities=entities),
                model,
            )
        finally:
            screener.close()

    asyncio.run(run())


def _spans(row: list[ScreenedText]) -> list[list[tuple[int, int]]]:
    return [[(span.start, span.end) for span in result.spans] for result in row]


def test_names_are_found_beside_patterns_in_each_text() -> None:
    words = PatternSet.from_toml('[[words]]\nlabel = "WORD"\nwords = ["here"]\n')
    listed = TextScreen("list", "c", "patterns", 1.0, "flag", patterns=words)

    async def work(screener: Screener, names: TextScreen, model: _Model) -> None:
        rows = await screener.read(["Ada is here", "nobody", ""], [names, listed])
        by_name = [{result.screen.name: _spans([result])[0] for result in row} for row in rows]
        assert by_name == [
            {"names": [(0, 3)], "list": [(7, 11)]},
            {"names": [], "list": []},
            {"names": [], "list": []},
        ]
        assert [row[-1].fired for row in rows] == [True, False, False]

    _run(work)


def test_a_long_text_is_read_in_chunks_whose_places_add_up() -> None:
    text = "".join(f"Ada and {number:05d}. " for number in range(200))

    async def work(screener: Screener, names: TextScreen, model: _Model) -> None:
        (row,) = await screener.read([text], [names])
        assert _spans(row) == [[(start, start + 3) for start in range(0, len(text), 15)]]
        assert len(model.read) >= 3 and max(map(len, model.read)) <= SIZE
        read = len(model.read)
        await screener.read([text], [names])
        assert len(model.read) == read, "what was read is not read again"

    _run(work)


def test_more_text_than_is_read_is_refused() -> None:
    async def work(screener: Screener, names: TextScreen, model: _Model) -> None:
        with pytest.raises(TextTooLong):
            await screener.read(["x" * MAX_ENCODED_BYTES, "y"], [names])
        assert not model.read

    _run(work)


def test_a_failing_model_fails_the_request_and_its_text_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work(screener: Screener, names: TextScreen, model: _Model) -> None:
        model.fault = ValueError("cannot read 'Ada'")
        with pytest.raises(GuardFailed, match="a model of entities failed"):
            await screener.read(["Ada"], [names])
        assert "ValueError" in caplog.text and "Ada" not in caplog.text
        model.fault = None
        (row,) = await screener.read(["Ada"], [names])
        assert row[0].fired

    with caplog.at_level(logging.ERROR):
        _run(work)


def test_names_of_two_texts_are_not_one() -> None:
    pieces = [JsonText({}, "", text, "user", "p", 0) for text in ("I am Ada", "Ada again")]

    async def work(screener: Screener, names: TextScreen, model: _Model) -> None:
        assert await read_crossing(screener, pieces, [names]) == []
        assert not model.read

    _run(work)


class _Failing:
    """A screener whose model of names fails."""

    async def read(
        self, texts: Sequence[str], screens: Sequence[TextScreen], *_: object
    ) -> list[list[ScreenedText]]:
        if any(screen.entities is not None for screen in screens):
            raise GuardFailed("a model of entities failed")
        return [[ScreenedText(screen, 1.0) for screen in screens] for _ in texts]


def test_where_a_model_of_names_fails_open_all_other_screens_read() -> None:
    words = PatternSet.from_toml('[[words]]\nlabel = "WORD"\nwords = ["here"]\n')
    names = EntityRecognizer(_Model(), ["PERSON"])
    screens = [
        TextScreen("names", "c", "entities", 1.0, "redact", entities=names),
        TextScreen("injection", "c", "screen", 0.5, "block", head=0),
        TextScreen("list", "c", "patterns", 1.0, "flag", patterns=words),
    ]
    plan = TextPlan("p", "open", ScreenConfig(), tuple(screens), {})
    exchange: Any = SimpleNamespace(
        context=SimpleNamespace(screener=_Failing()),
        exchange=Exchange("r"),
        plan=plan,
        findings=Findings(plan),
        caller=Caller(),
    )
    (row,) = asyncio.run(ScreenedExchange.read(exchange, ["Ada is here"], screens))
    assert {result.screen.name for result in row} == {"injection", "list"}
    assert exchange.findings.outcome == "error"
