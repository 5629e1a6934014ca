"""The scripted upstream answers as frameworks expect it, and texts are counted by their places."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import openai
import pytest

from benchmarks.screens.frameworks.__main__ import texts_of
from benchmarks.screens.frameworks.capture import DRIVERS, FRAMEWORKS
from benchmarks.screens.frameworks.drivers.scenario import KEY, MODEL, Session, call
from benchmarks.screens.frameworks.left_out import without
from benchmarks.screens.frameworks.reading import Read, read
from benchmarks.screens.frameworks.upstream import LAST, Sent, Upstream, serving
from guard.config.policy_schema import PLACES, Place, ScreenConfig
from guard.data.prompts import ScreenText
from guard.plans.screens import TextPlan, TextScreen
from server.screening.findings import ScreenedText

ASK: list[Any] = [{"role": "user", "content": "Where is my parcel?"}]


@pytest.fixture
def played() -> Iterator[tuple[Upstream, Session, openai.OpenAI]]:
    upstream = Upstream()
    with serving(upstream) as address:
        session = Session(address)
        session.begin("parcels")
        yield upstream, session, openai.OpenAI(base_url=session.url, api_key=KEY, max_retries=0)


def test_replies_are_played_one_after_the_other(
    played: tuple[Upstream, Session, openai.OpenAI],
) -> None:
    upstream, session, client = played
    session.play([call("track", {"parcel": "RR1"}), call("track", '{"parcel": ')], "In customs.")
    first = client.chat.completions.create(model=MODEL, messages=ASK).choices[0]
    assert first.finish_reason == "tool_calls"
    calls: list[Any] = list(first.message.tool_calls or [])
    assert [each.function.arguments for each in calls] == ['{"parcel": "RR1"}', '{"parcel": ']
    assert len({each.id for each in calls}) == 2
    second = client.responses.create(model=MODEL, input="Where is it?")
    assert second.output_text == "In customs."
    assert client.chat.completions.create(model=MODEL, messages=ASK).choices[0].message.content == (
        LAST
    )
    assert [(sent.scenario, sent.path) for sent in upstream.sent] == [
        ("parcels", "/v1/chat/completions"),
        ("parcels", "/v1/responses"),
        ("parcels", "/v1/chat/completions"),
    ]
    assert json.loads(upstream.sent[0].body)["messages"] == ASK


def test_a_path_without_an_answer_is_an_error(
    played: tuple[Upstream, Session, openai.OpenAI],
) -> None:
    _, session, client = played
    with pytest.raises(openai.NotFoundError, match="/v1/moderations"):
        client.moderations.create(input="?")
    answer = httpx.post(f"{session.url}/embeddings", json={"input": ["a", "b"], "model": "m"})
    assert len(answer.json()["data"]) == 2


def test_every_framework_has_its_driver() -> None:
    drivers = {path.stem for path in DRIVERS.glob("*.py")} - {"__init__", "scenario"}
    assert drivers == {*FRAMEWORKS.values()}
    pinned = (DRIVERS / "requirements.txt").read_text().splitlines()[1:]
    assert all("==" in line for line in pinned)


class _Screener:
    """Fires on what says "secret"."""

    async def read(
        self, texts: Sequence[str], screens: Sequence[TextScreen], tail: int | None = None
    ) -> list[list[ScreenedText]]:
        return [[ScreenedText(each, float("secret" in text)) for each in screens] for text in texts]


def _plan(*places: Place) -> TextPlan:
    screen = TextScreen("s", "text/s", "head", 0.5, "observe", head=0, places=frozenset(places))
    return TextPlan("p", "closed", ScreenConfig(), (screen,), {})


def test_texts_are_counted_by_the_places_that_a_screen_reads() -> None:
    body = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "Keep the secret."},
            {"role": "user", "content": "Hello"},
            {"role": "user", "content": "Hello"},
        ],
    }
    sent = [Sent("chat", "/v1/chat/completions", json.dumps(body))] * 2
    screener: Any = _Screener()
    everywhere = asyncio.run(read(sent, _plan(*PLACES), screener))
    users = asyncio.run(read(sent, _plan("user"), screener))
    assert users.texts == {"s": {"Hello": False}}
    assert everywhere.fired("s") == ["Keep the secret."]
    assert {"Keep the secret.", "Hello"} <= {*everywhere.texts["s"]}


def test_a_fit_without_a_framework_has_no_text_that_nearly_repeats_one_of_its_own() -> None:
    error = "Error: the tool {} has failed, take care not to make the same mistake again"
    families = {
        error.format("maps"): "framework-one",
        error.format("news"): "framework-two",
        "Where is my parcel?": "framework-two",
        error.format("mail"): "other traffic",
    }
    rows = [
        ScreenText(text=text, unsafe=False, source="software", family=family)
        for text, family in families.items()
    ]
    assert without("one", rows) == [2, 3]
    assert without("two", rows) == [3]


def test_texts_are_kept_by_screen_and_framework() -> None:
    read_by = {
        "one": Read({"s": {"Hello": False, "secret": True}}),
        "two": Read({"s": {"Hello": False}, "t": {"Bye": False}}),
    }
    assert texts_of(read_by) == {
        "s": {"one": ["Hello", "secret"], "two": ["Hello"]},
        "t": {"one": [], "two": ["Bye"]},
    }
