"""Runs of a text that are written in Base64, hexadecimal digits or escapes, and what they say.

A run counts only if it decodes to something legible: keys, digests and identifiers do not. What a
run says may be encoded again; that is for the caller to ask.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote

import re2  # type: ignore[import-untyped]

from classifiers.text.disguises.rewriting import Replacement

Codec = Literal["escape", "url", "hex", "base64"]

_SHORT: Final = 24
# RE2 looks for what most texts lack altogether: it is the faster by far.
_BASE64: Final = re2.compile(r"[A-Za-z0-9+/_-]{14,}={0,2}")
_ANY_HEX: Final = re2.compile(r"(?:[0-9A-Fa-f]{2}(?:, ?|[ :-])?(?:\\x|0x)?){4}")
_BASE64_LINE: Final = re.compile(r"[ \t]{0,4}\n[ \t>]{0,8}([A-Za-z0-9+/_-]++={0,2})(?!\w)")
_HEX: Final = re.compile(
    r"(?<![0-9A-Za-z])(?:\\x|0x)?[0-9A-Fa-f]{2}(?:(?:, ?|[ :-])?(?:\\x|0x)?[0-9A-Fa-f]{2}){3,}+"
)
_HEX_MARKS: Final = re.compile(r"\\x|0x|[^0-9A-Fa-f]")
_URL: Final = re.compile(r"(?:%[0-9A-Fa-f]{2})++")
_ESCAPE: Final = re.compile(
    r"(?:\\u[0-9A-Fa-f]{4}|\\u\{[0-9A-Fa-f]{1,6}\}|&#[0-9]{2,7};|&#[xX][0-9A-Fa-f]{2,6};)++"
)
_ESCAPED: Final = re.compile(r"\\u\{?([0-9A-Fa-f]{1,6})\}?|(&#[xX]?[0-9A-Fa-f]{2,7};)")


def encoded_runs(text: str) -> list[tuple[Codec, Replacement]]:
    """Each encoded run with its decoding, in order and apart from each other. Linear in the text.

    The decodings are together no longer than the text.
    """
    found = sorted(
        [*_escapes(text), *_urls(text), *_hexes(text), *_base64s(text)],
        key=lambda run: run[1].start,
    )
    runs: list[tuple[Codec, Replacement]] = []
    for codec, edit in found:
        if not runs or runs[-1][1].end <= edit.start:
            runs.append((codec, edit))
    return runs


def _escapes(text: str) -> Iterator[tuple[Codec, Replacement]]:
    if "\\u" in text or "&#" in text:
        for run in _ESCAPE.finditer(text):
            yield "escape", Replacement(run.start(), run.end(), _ESCAPED.sub(_unescape, run[0]))


def _unescape(escape: re.Match[str]) -> str:
    if escape[2]:
        return html.unescape(escape[2])
    code = int(escape[1], 16)
    return chr(code) if code < 0x110000 else escape[0]


def _urls(text: str) -> Iterator[tuple[Codec, Replacement]]:
    if "%" in text:
        for run in _URL.finditer(text):
            said = unquote(run[0])
            if "\N{REPLACEMENT CHARACTER}" not in said:
                yield "url", Replacement(run.start(), run.end(), said)


def _hexes(text: str) -> Iterator[tuple[Codec, Replacement]]:
    if not _ANY_HEX.search(text):
        return
    for run in _HEX.finditer(text):
        digits = _HEX_MARKS.sub("", run[0])
        digits = digits[: len(digits) // 2 * 2]
        marked = "\\x" in run[0] or "0x" in run[0]
        if len(digits) < (8 if marked else 12):
            continue
        said = _legible(bytes.fromhex(digits))
        if said:
            yield "hex", Replacement(run.start(), run.end(), said)


def _base64s(text: str) -> Iterator[tuple[Codec, Replacement]]:
    place = 0
    for run in _BASE64.finditer(text):
        if run.start() < place:
            continue
        lines, ends = [run[0]], [run.end()]
        while line := _BASE64_LINE.match(text, ends[-1]):
            width = max(map(len, lines[:2]))
            lines.append(line[1])
            ends.append(line.end(1))
            if len(line[1]) < width:
                break
        place = ends[-1]
        # The last line may be the first word of what follows: then it makes no sense.
        counts = dict.fromkeys((len(lines), max(1, len(lines) - 1), 1))
        tried = [(count, _from_base64("".join(lines[:count]))) for count in counts]
        read = [(count, decoded) for count, decoded in tried if decoded]
        if read:
            count, (_, skipped, said) = min(read, key=lambda one: (one[1].odd, -one[0]))
            place = ends[count - 1]
            yield "base64", Replacement(run.start() + skipped, place, said)


class _Read(NamedTuple):
    odd: int
    skipped: int
    said: str


def _from_base64(run: str) -> _Read | None:
    # Something else may be stuck to the front of it: each of the four phases is tried.
    digits = run.rstrip("=").replace("-", "+").replace("_", "/")
    for skipped in range(4):
        part = digits[skipped:]
        part = part[:-1] if len(part) % 4 == 1 else part
        try:
            said = _legible(base64.b64decode(part + "=" * (-len(part) % 4)))
        except binascii.Error:
            continue
        if said:
            return _Read(_odd(said), skipped, said)
    return None


def _odd(said: str) -> int:
    # Characters that no text has.
    return sum(not (char.isprintable() or char.isspace()) or char == "\ufffd" for char in said)


def _legible(data: bytes) -> str | None:
    said = data.decode("utf-8", "replace")
    wordy = sum(char.isalnum() or char.isspace() for char in said)
    allowed = len(said) // 8 if len(said) > _SHORT else 0
    return said if _odd(said) <= allowed and 2 * wordy >= len(said) > 0 else None
