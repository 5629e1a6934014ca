"""Every reader of what comes from outside takes time linear in it: n and 4n are timed."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import pytest

from guard.errors import GuardError
from server.proxy.forwarding.forward import _CLIMBING_SEGMENT
from server.proxy.forwarding.headers import to_upstream
from server.screening.bodies.texts import MAX_TEXTS, texts_of
from server.screening.errors import TooManyTexts, UnreadableAnswer
from server.screening.streams.hold_back import Span
from server.screening.streams.sse import BrokenStream, EventReader
from server.screening.texts.joins import without_codes
from server.screening.texts.redaction import Placeholders
from server.wire.forms import parse_form
from server.wire.schemas.images import EditRequest
from server.wire.strict_json import _has_more_values, parse_answer, parse_object
from tests.server.screening.streams.test_guard import _Guarded as Guarded

N = 4000
MOST = 8.0
"""How much longer four times as much may take: quadratic time is 16."""
Work = Callable[[], object]
FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n'


def _body(text: str) -> Work:
    raw = text.encode()
    return lambda: parse_object(raw)


def _form(body: bytes, media: str = FORM) -> Work:
    return lambda: parse_form(body, media, EditRequest)


def _feed(content: bytes, size: int) -> Work:
    def work() -> None:
        reader = EventReader(2**30)
        for start in range(0, len(content), size):
            list(reader.feed(content[start : start + size]))
        list(reader.rest())

    return work


def _names(count: int) -> str:
    return ",".join(f'"k{number}":1' for number in range(count))


def _chats(content: Any, count: int) -> Work:
    value = {"messages": [{"role": "user", "content": content} for _ in range(count)]}
    return lambda: texts_of(value, "user")


def _signed(count: int) -> Work:
    thoughts = [{"type": "thinking", "thinking": "t", "signature": "s"} for _ in range(count)]

    def work() -> None:
        texts = texts_of({"messages": [{"role": "assistant", "content": [*thoughts]}]}, "user")
        for piece in texts.pieces:
            piece.write("")
        texts.write_back()

    return work


def _redacted(count: int) -> Work:
    spans = [Span(2 * at, 2 * at + 1, "A") for at in range(count)]
    return lambda: Placeholders([]).redact("ab" * count, spans)


def _restored(count: int, *, is_number: bool = False) -> Work:
    placeholders = Placeholders([])
    for at in range(count):
        placeholders.placeholder_for("A", str(at), is_number=is_number)
    placeholders.seal()

    def work() -> None:
        for at in range(count):
            assert placeholders.partial_length("Well, [Yes: [A_") == 3
            assert placeholders.begins_number(f"[A_{at + 1}") == is_number
            assert (placeholders.number(f"[A_{at + 1}]") is not None) == is_number

    return work


def _chunk(choices: list[dict[str, Any]]) -> bytes:
    return b"data: " + json.dumps({"choices": choices}).encode() + b"\n\n"


def _choice(index: int, text: str = "x") -> dict[str, Any]:
    return {"index": index, "delta": {"content": text}, "finish_reason": None}


def _call(index: int) -> dict[str, Any]:
    calls = [{"index": index, "function": {"arguments": "x"}}]
    return {"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}


def _stream(events: list[bytes]) -> Work:
    return lambda: Guarded("redact", 200).run(events)


READERS: dict[str, Callable[[int], Work]] = {
    "a name twice": lambda n: _body("{" + _names(n) + ',"k0":2}'),
    "one name always": lambda n: _body("{" + ",".join(['"k":1'] * n) + "}"),
    "a name twice in an answer": lambda n: lambda: parse_answer("{" + _names(n) + ',"k0":2}'),
    "surrogates": lambda n: _body('{"a":"' + "\\ud83d\\ude00" * 10 * n + '"}'),
    "halves of surrogates": lambda n: _body('{"a":"' + "\\ud83d" * 10 * n + '"}'),
    "depth": lambda n: _body('{"a":' + "[" * 10 * n + "]" * 10 * n + "}"),
    "many that are deep": lambda n: _body('{"a":[' + "[[[]]]," * n + "1]}"),
    "a long integer": lambda n: _body('{"a":[' + "9" * 10 * n + "]}"),
    "many integers": lambda n: _body('{"a":[' + "9," * 10 * n + "1]}"),
    "a long fraction": lambda n: _body('{"a":0.' + "9" * 10 * n + "}"),
    "quotes": lambda n: _body('{"a":"' + '\\"' * 10 * n + '"}'),
    "a string without an end": lambda n: _body('{"a":"' + '\\"' * 10 * n),
    "more values than are read": lambda n: lambda: _has_more_values('"\\"",' * 10 * n, 10),
    "messages": lambda n: _chats("hello", n),
    "parts of messages": lambda n: _chats([{"type": "text", "text": "a"}] * (n // 8), 8),
    "names of members": lambda n: _chats([{f"x {at}": 1 for at in range(n)}], 1),
    "placeholders": lambda n: lambda: Placeholders(["[A_1 [A_1_1_1" * n])._taken,
    "half a placeholder": lambda n: lambda: Placeholders(["[A" * n + "_1" * n])._taken,
    "capitals": lambda n: lambda: Placeholders(["A" * 10 * n, "A_" * n])._taken,
    "placeholders to be restored": _restored,
    "numbers to be restored": lambda n: _restored(n, is_number=True),
    "codes that are none": lambda n: lambda: without_codes(("a1B" * 85 + " ") * (n // 16)),
    "redactions": _redacted,
    "signed thoughts": _signed,
    "empty lines": lambda n: _feed(b"\n" * 10 * n, 1000),
    "small events": lambda n: _feed(b"data: x\n\n" * n, 7),
    "an event in small chunks": lambda n: _feed(b"data: " + b"x" * 50 * n, 50),
    "an event of many lines": lambda n: _feed(b"data: x\n" * 10 * n, 1000),
    "line ends that are none": lambda n: _feed(b"data: " + b"\r\n \r\n " * n, 50),
    "many events in a chunk": lambda n: _feed(b"data: x\n\n" * n, 2**30),
    "fields of a form": lambda n: _form(PART * n + b"\r\n--b--\r\n"),
    "half a boundary": lambda n: _form(PART + b"\r\n--" * 10 * n + b"\r\n--b--\r\n"),
    "line ends in a file": lambda n: _form(PART + b"\r" * 10 * n + b"\r\n--b--\r\n"),
    "parameters of a content type": lambda n: _form(b"", "multipart/form-data" + "; a=b" * n),
    "numbered parameters": lambda n: _form(
        b"", "multipart/form-data" + "".join(f"; a*{at}=x" for at in range(n // 4))
    ),
    "a path": lambda n: lambda: _CLIMBING_SEGMENT.search(unquote("/..a%2e" * n + "%" * n)),
    "names in Connection": lambda n: (
        lambda: to_upstream([(b"connection", b",".join(b"a%d" % at for at in range(n)))])
    ),
    "choices of a stream": lambda n: _stream(
        [_chunk([_choice(at % 200)]) for at in range(n // 16)]
    ),
    "one choice": lambda n: _stream([_chunk([_choice(0)]) for _ in range(n // 16)]),
    "choices of an event": lambda n: _stream([_chunk([_choice(at) for at in range(n)])]),
    "indexes without text": lambda n: _stream([_chunk([_choice(at, "")]) for at in range(n)]),
    "calls of a stream": lambda n: _stream([_chunk([_call(at)]) for at in range(n // 16)]),
}


def _seconds(work: Work) -> float:
    best = 1e9
    for _ in range(3):
        started = time.thread_time()
        with suppress(GuardError, BrokenStream, ValueError):
            work()
        best = min(best, time.thread_time() - started)
    return best


@pytest.mark.parametrize("name", READERS)
def test_time_is_linear(name: str) -> None:
    reader = READERS[name]
    gc.collect()
    gc.disable()
    try:
        # other work on the machine disturbs measurements, and memory has steps of its own, at which
        # one size takes longer than its share; quadratic time is quadratic at every size
        for size in (N, N, 2 * N, N, 4 * N, 2 * N, N, 4 * N):
            less, more = _seconds(reader(size)), _seconds(reader(4 * size))
            if more < MOST * max(less, 0.0005):
                break
    finally:
        gc.enable()
    assert more < MOST * max(less, 0.0005), f"{1000 * less:.1f} ms, then {1000 * more:.1f} ms"
    assert more < 3 * size / N, "and that is a bound"


def test_thirty_thousand_names_take_no_time() -> None:
    started = time.thread_time()
    with suppress(GuardError):
        parse_object(("{" + _names(30_000) + ',"k0":2}').encode())
    assert time.thread_time() - started < 1


def test_no_more_texts_are_collected_than_are_read() -> None:
    with pytest.raises(TooManyTexts, match=f"{MAX_TEXTS} texts"):
        texts_of({"messages": ["a"] * (MAX_TEXTS + 1)}, "user")
    with pytest.raises(UnreadableAnswer, match=f"{MAX_TEXTS} texts"):
        texts_of(["a"] * (MAX_TEXTS + 1), "response")
