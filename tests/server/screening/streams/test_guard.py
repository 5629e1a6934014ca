"""Screened streams, however they are cut into chunks."""

from __future__ import annotations

import asyncio
import json
import re
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.config.policy_schema import ScreenConfig, TextAction
from guard.plans.screens import TextPlan, TextScreen
from server.screening.answers.app_verdicts import TakenVerdicts
from server.screening.answers.upstream_errors import WITHHELD
from server.screening.findings import Findings, ScreenedText
from server.screening.spans import Span
from server.screening.streams.event_queue import EventQueue, WaitingEvent
from server.screening.streams.formats.base import StreamFormat, StreamOptions
from server.screening.streams.formats.choices import ChatFormat
from server.screening.streams.formats.messages import MessagesFormat
from server.screening.streams.formats.responses import ResponsesFormat
from server.screening.streams.guard import StreamGuard
from server.screening.streams.sse import BrokenStream
from server.screening.texts.redaction import Placeholders
from tests.processor_time import grows_linearly

_SECRET = re.compile(r"a[bc]{1,4}a|dd")
MARK = "[S_1]"


def _screen(action: TextAction) -> TextScreen:
    return TextScreen("s", "c", "patterns", 1.0, action)


class _Guarded:
    """A stream under one policy; `windows` are the texts that were read of it."""

    def __init__(
        self,
        action: TextAction,
        hold_back: int,
        restored: Placeholders | None = None,
        *,
        stream_format: StreamFormat | None = None,
        own_app: bool = False,
        event_limit: int = 2**25,
    ) -> None:
        self.windows: list[str] = []
        screen = _screen(action)
        config = ScreenConfig(hold_back_chars=hold_back, restore=restored is not None)
        plan = TextPlan("p", "closed", config, (screen,), {})
        self.screen = screen
        self.findings = Findings(plan)
        self.guard = StreamGuard(
            stream_format or ChatFormat(),
            self.findings,
            self,
            restored or _Marks(),
            choices=1,
            own_app=own_app,
            event_limit=event_limit,
        )

    async def read(
        self, texts: Sequence[str], screens: Sequence[TextScreen], tail: int | None = None
    ) -> list[list[ScreenedText]]:
        self.windows += texts
        matches = [
            tuple(Span(m.start(), m.end(), "S") for m in _SECRET.finditer(text)) for text in texts
        ]
        return [[ScreenedText(self.screen, float(bool(spans)), spans)] for spans in matches]

    def guard_object(self) -> dict[str, Any]:
        return {"outcome": self.findings.outcome}

    def take_verdicts(self, body: dict[str, Any]) -> TakenVerdicts:
        return TakenVerdicts(body)

    def put_back(self, verdicts: TakenVerdicts, body: dict[str, Any]) -> None:
        verdicts.put_back(body, "full", self.findings.outcome)

    def run(self, chunks: Sequence[bytes]) -> bytes:
        async def through() -> bytes:
            out = b""
            for chunk in chunks:
                out += await self.guard.feed(chunk)
                if self.guard.is_over:
                    return out
            return out + await self.guard.end()

        return asyncio.run(through())


class _Marks(Placeholders):
    """Every secret has the same one."""

    def __init__(self) -> None:
        super().__init__(())

    def placeholder_for(self, label: str, original: str, *, is_number: bool = False) -> str:
        return MARK


def _events(deltas: Sequence[str]) -> list[bytes]:
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None} for text in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    return [
        *(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" for choice in choices),
        b"data: [DONE]\n\n",
    ]


def _text(out: bytes) -> str:
    lines = [line[6:] for line in out.decode().split("\n\n") if line and "[DONE]" not in line]
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])


def _cut(text: str, cuts: Sequence[int]) -> list[str]:
    at = sorted({min(cut, len(text)) for cut in cuts})
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


TEXTS = st.text("abcd ", max_size=150)
CUTS = st.lists(st.integers(0, 150), max_size=15)


@settings(deadline=None)
@given(TEXTS, CUTS, st.integers(1, 50), st.sampled_from([16, 40, 64]))
def test_a_redacted_stream_is_the_redacted_text(
    text: str, cuts: list[int], size: int, hold_back: int
) -> None:
    whole = b"".join(_events(_cut(text, cuts)))
    chunks = [whole[at : at + size] for at in range(0, len(whole), size)]
    guarded = _Guarded("redact", hold_back)
    out = guarded.run(chunks)
    assert _text(out) == _SECRET.sub(MARK, text)
    assert out.endswith(b"data: [DONE]\n\n")
    at_once = _Guarded("redact", hold_back)
    at_once.run([b"".join(_events([text]))])
    assert guarded.windows == at_once.windows, "what is read does not depend on the chunks"


@settings(deadline=None)
@given(TEXTS, CUTS, st.sampled_from([16, 40, 64]))
def test_a_blocked_stream_ends_at_the_same_place_before_the_secret(
    text: str, cuts: list[int], hold_back: int
) -> None:
    ended = _Guarded("block", hold_back).run(_events(_cut(text, cuts)))
    at_once = _Guarded("block", hold_back).run(_events([text]))
    match = _SECRET.search(text)
    assert _text(ended) == _text(at_once)
    assert ended.endswith(b"data: [DONE]\n\n")
    if match is None:
        assert _text(ended) == text
    else:
        assert b"content_filter" in ended
        assert text[: match.start()].startswith(_text(ended))


@settings(deadline=None)
@given(TEXTS, CUTS)
def test_a_silent_stream_leaves_byte_for_byte(text: str, cuts: list[int]) -> None:
    harmless = _SECRET.sub("", text)
    while _SECRET.search(harmless):
        harmless = _SECRET.sub("", harmless)
    events = _events(_cut(harmless, cuts))
    out = _Guarded("redact", 40).run(events)
    last = events[-2].replace(b"}]}", b'}],"guard":{"outcome":"pass"}}')
    assert _normal(out) == _normal(b"".join([*events[:-2], last, events[-1]]))


def _normal(out: bytes) -> list[Any]:
    lines = out.decode().split("\n\n")
    return [json.loads(line[6:]) if line[6:7] == "{" else line for line in lines]


def test_the_end_of_a_stream_leaves_whatever_its_format() -> None:
    for form in (ChatFormat(), MessagesFormat(), ResponsesFormat()):
        queue = EventQueue(form, dict, lambda verdicts, event: None, 2**20)
        queue.put(WaitingEvent(b"data: [DONE]\n\n"))
        assert queue.release() == b"data: [DONE]\n\n"


FORMED = StreamOptions(has_form=True)
OBJECT = '{"name": "Eve", "note": "%s -", "list": [1, 2, 3], "more": "- x"}'


@settings(deadline=None)
@given(TEXTS, CUTS, st.sampled_from([16, 40]))
def test_an_object_that_may_be_blocked_leaves_whole_or_not_at_all(
    text: str, cuts: list[int], hold_back: int
) -> None:
    deltas = _cut(OBJECT % text, cuts)
    guarded = _Guarded("block", hold_back, stream_format=ChatFormat(FORMED))

    async def through() -> list[str]:
        out = []
        for event in _events(deltas):
            if not guarded.guard.is_over:
                out.append(_text(await guarded.guard.feed(event) + await guarded.guard.flush()))
        return [text for text in out if text]

    left = asyncio.run(through())
    if _SECRET.search(text):
        assert left == [] and guarded.guard.is_over
    else:
        assert "".join(left) == OBJECT % text and len(left) == 1


def test_an_object_that_waits_takes_time_linear_in_its_values() -> None:
    def work(values: int) -> None:
        text = json.dumps([f"value {number}" for number in range(values)])
        deltas = [text[at : at + 8] for at in range(0, len(text), 8)]
        guarded = _Guarded("block", 40, stream_format=ChatFormat(FORMED))
        assert _text(guarded.run(_events(deltas))) == text

    assert grows_linearly(work, 1600, constant=0.2, factor=16)


def test_an_object_that_waits_is_no_longer_than_an_answer_may_be() -> None:
    events = _events(['["', *["harmless " * 20] * 60, '"]'])
    for limit, is_read in ((4096, False), (32_768, True)):
        guarded = _Guarded("block", 40, stream_format=ChatFormat(FORMED), event_limit=limit)
        if is_read:
            assert _text(guarded.run(events))
        else:
            with pytest.raises(BrokenStream, match="more than 8192 bytes wait to be read"):
                guarded.run(events)


def test_an_object_that_no_screen_may_block_leaves_as_it_comes() -> None:
    guarded = _Guarded("redact", 16, stream_format=ChatFormat(FORMED))
    first = _events([OBJECT % "harmless and long"])[0]
    assert _text(asyncio.run(guarded.guard.feed(first)))


def test_half_a_placeholder_waits_for_the_rest_whatever_the_time() -> None:
    marks = Placeholders(())
    assert marks.placeholder_for("EMAIL", "a@example.org") == "[EMAIL_1]"
    marks.seal()
    guarded = _Guarded("redact", 40, marks)
    first, second, third, *last = _events(["To ", "[EMA", "IL_1], [but"])

    async def through() -> list[str]:
        flushed = [await guarded.guard.feed(first + second), await guarded.guard.flush()]
        flushed += [await guarded.guard.feed(third), await guarded.guard.flush()]
        flushed += [await guarded.guard.feed(b"".join(last)), await guarded.guard.end()]
        return [_text(flushed[at] + flushed[at + 1]) for at in (0, 2, 4)]

    assert asyncio.run(through()) == ["To ", "a@example.org, [but", ""]


def test_a_stream_that_waits_holds_little() -> None:
    """What a parsed event takes would be 60 KiB here."""
    about = {"id": "chatcmpl-1234567890", "object": "chat.completion.chunk", "created": 1_700_000}
    choice = {"index": 0, "delta": {"content": "hello "}, "logprobs": None, "finish_reason": None}
    event = b"data: " + json.dumps({**about, "choices": [choice]}).encode() + b"\n\n"

    async def through(guarded: _Guarded) -> _Guarded:
        for _ in range(200):
            await guarded.guard.feed(event)
        guarded.windows.clear()
        return guarded

    asyncio.run(through(_Guarded("block", 200)))
    tracemalloc.start()
    try:
        streams = [asyncio.run(through(_Guarded("block", 200))) for _ in range(10)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(guarded.guard.is_holding for guarded in streams)
    assert taken / len(streams) < 40 * 1024


@settings(deadline=None)
@given(TEXTS, CUTS, st.sampled_from([16, 40, 64]))
def test_no_more_is_held_than_the_policy_says(text: str, cuts: list[int], hold_back: int) -> None:
    guarded = _Guarded("flag", hold_back)

    async def through() -> None:
        received = 0
        left = ""
        for delta, event in zip(_cut(text, cuts), _events(_cut(text, cuts)), strict=False):
            received += len(delta)
            out = await guarded.guard.feed(event)
            left += _text(out)
            # what is held as a whole event counts with it
            assert received - len(left) <= hold_back + max(map(len, _cut(text, cuts)), default=0)

    asyncio.run(through())


ERRORS: list[tuple[StreamFormat, dict[str, Any]]] = [
    (ChatFormat(), {"error": {"message": "no dd here", "code": "x"}}),
    (MessagesFormat(), {"type": "error", "error": {"type": "x", "message": "no dd here"}}),
    (ResponsesFormat(), {"type": "error", "message": "no dd", "code": "x", "sequence_number": 3}),
]


def _errors_of(out: bytes) -> list[dict[str, Any]]:
    lines = [line.partition("data: ")[2] for line in out.decode().split("\n\n") if line]
    return [json.loads(line) for line in lines if "error" in line]


@pytest.mark.parametrize(("stream_format", "event"), ERRORS)
def test_an_error_event_is_not_cut_as_content(
    stream_format: StreamFormat, event: dict[str, Any]
) -> None:
    raw = b"data: " + json.dumps(event).encode() + b"\n\n"
    masked = _Guarded("block", 40, stream_format=stream_format).run([raw])
    (error,) = _errors_of(masked)
    assert b"dd" not in masked and b"content_filter" not in masked and b"refusal" not in masked
    assert error.pop("guard") == {"outcome": "blocked"}
    assert error.get("error", error)["message"] == WITHHELD
    told = {**event, "message": WITHHELD} if "message" in event else event
    told |= {"error": {**event["error"], "message": WITHHELD}} if "error" in event else {}
    assert error == told, "type, code and number stay"
    trusted = _Guarded("block", 40, stream_format=stream_format, own_app=True)
    assert trusted.run([raw]) == raw
    assert not trusted.windows, "errors of this server are not read"


def test_an_event_with_content_and_an_error_is_content() -> None:
    choice = {"index": 0, "delta": {"content": "ad"}, "finish_reason": "error"}
    event = {"error": {"message": "dd"}, "choices": [choice]}
    raw = b"data: " + json.dumps(event).encode() + b"\n\n"
    assert b"content_filter" in _Guarded("block", 40, own_app=True).run([raw])


def _calls(arguments: str, size: int = 5) -> list[bytes]:
    pieces = [arguments[at : at + size] for at in range(0, len(arguments), size)]
    deltas = [{"tool_calls": [{"index": 0, "function": {"arguments": p}}]} for p in pieces]
    return [
        b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"
        for delta in deltas
    ]


@pytest.mark.parametrize(
    ("arguments", "is_cut"),
    [
        ({"a": "see abb", "b": "ba now"}, True),
        ({"a": "see abb", "b": ["ba now"]}, True),
        ({"a": "see ab", "b": "abba now"}, False),
        ({"a": "see abc", "b": "bc"}, False),
    ],
)
def test_a_word_that_is_split_over_two_arguments_ends_a_stream(
    arguments: Any, is_cut: bool
) -> None:
    guarded = _Guarded("redact", 40)
    out = guarded.run(_calls(json.dumps(arguments)))
    assert (b"content_filter" in out) == is_cut
