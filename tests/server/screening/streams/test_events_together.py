"""Events that come together, as from a fast upstream, are read as one text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.server.screening.streams.test_long_matches import framed, guarded

END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
WORDS = ("Write ", "to ", "ann@", "example", ".com ", "or ", "call ", "078-05-", "1120 ", "now.")


def _run(chunks: Sequence[bytes]) -> tuple[list[bytes], list[str]]:
    """What leaves at each chunk, and the texts that were read."""
    guard = guarded()
    read: list[str] = []
    screens: Any = guard._screens
    inner = screens.read

    async def noting(texts: Sequence[str], *rest: Any) -> Any:
        read.extend(texts)
        return await inner(texts, *rest)

    screens.read = noting

    async def through() -> list[bytes]:
        return [await guard.feed(chunk) for chunk in chunks]

    return asyncio.run(through()), read


def _text(out: Sequence[bytes]) -> str:
    events = [
        line[6:] for line in b"".join(out).decode().splitlines() if line.startswith("data: {")
    ]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    return "".join(delta.get("content", "") for delta in deltas)


@pytest.mark.parametrize("together", [1, 3, 11])
def test_what_leaves_does_not_depend_on_which_come_together(together: int) -> None:
    events = [*(framed({"content": word}) for word in WORDS), END]
    chunks = [b"".join(events[at : at + together]) for at in range(0, len(events), together)]
    out, _ = _run(chunks)
    assert _text(out) == "Write to [EMAIL_1] or call [US_SSN_1] now."
    assert out[-1].endswith(b"data: [DONE]\n\n")


def test_they_are_read_once() -> None:
    prose = [framed({"content": f"{word} "}) for word in WORDS[:2] * 4]
    _, apart = _run(prose)
    out, together = _run([b"".join(prose)])
    assert len(apart) > 3
    assert len(together) == 1
    assert out[0], "what can no longer be part of a match has left"


def test_padding_of_events_is_read_and_stays() -> None:
    """OpenAI adds letters at random to each event."""
    secret = "ann@example.com"
    chunks = [
        framed({"content": "one "})[:-3] + f', "obfuscation": "{padding}"}}\n\n'.encode()
        for padding in ("aX3", "kd93Jqpw", secret, "")
    ]
    out, read = _run([*chunks, END])
    assert {"aX3", "kd93Jqpw", secret} <= set(read)
    assert secret.encode() not in b"".join(out)
    assert b'"obfuscation": "kd93Jqpw"' in b"".join(out)
    assert _text(out) == "one one one one "
