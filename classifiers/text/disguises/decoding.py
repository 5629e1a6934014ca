"""Runs of a text in Base64, hexadecimal digits, percent encoding or escapes, and their decodings.

A run counts only if it decodes to legible text: keys, digests and identifiers do not. A decoding
may be encoded again; the caller checks that (`views.layers`).
"""

from __future__ import annotations

import binascii
import html
import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote

import re2  # type: ignore[import-untyped]

from classifiers.text.disguises.rewriting import Replacement

Codec = Literal["escape", "url", "hex", "base64"]

_SHORT: Final = 24
# A first search with RE2, which is faster by far: most texts have no run at all.
_BASE64: Final = re2.compile(r"[A-Za-z0-9+/_-]{14,}={0,2}")
_ANY_HEX: Final = re2.compile(r"(?:[0-9A-Fa-f]{2}(?:, ?|[ :-])?(?:\\x|0x)?){4}")
_BASE64_LINE: Final = re.compile(r"[ \t]{0,4}\n[ \t>]{0,8}([A-Za-z0-9+/_-]++={0,2})(?!\w)")
_HEX: Final = re.compile(
    r"(?<![0-9A-Za-z])(?:\\x|0x)?[0-9A-Fa-f]{2}(?:(?:, ?|[ :-])?(?:\\x|0x)?[0-9A-Fa-f]{2}){3,}+"
)
_HEX_MARKS: Final = re.compile(r"\\x|0x|[^0-9A-Fa-f]")
_URL: Final = re.compile(r"(?:%[0-9A-Fa-f]{2})++")
_ESCAPE: Final = re.compile(
    r"(?:\\u[0-9A-Fa-f]{4}|\\u\{[0-9A-Fa-f]{1,6}\}|&#[0-9]{2,7};|&#[xX][0-9A-Fa-f]{2,6};"
    r'|\\(?:["/bfnrt]|\\(?!u)))++'
)
_ESCAPED: Final = re.compile(
    r"\\u\{?([0-9A-Fa-f]{1,6})\}?|(&#[xX]?[0-9A-Fa-f]{2,7};)|\\([\"\\/bfnrt])"
)
_CONTROLS: Final = bytes([*range(9), *range(14, 28), 127])
_SIGNS: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
RUNS: Final[Mapping[Codec, str]] = {
    "escape": r"(?:\\u(?:[0-9A-Fa-f]{4}|\{[0-9A-Fa-f]{1,6}\})"
    r'|&#(?:[0-9]{2,7}|[xX][0-9A-Fa-f]{2,6});|\\["\\/bfnrt])+',
    "url": r"(?:%[0-9A-Fa-f]{2})+",
    "hex": r"(?:\\x|0x)?[0-9A-Fa-f]{2}(?:(?:, ?|[ :-])?(?:\\x|0x)?[0-9A-Fa-f]{2}){3,}",
    "base64": r"[A-Za-z0-9+/_-]{14,}={0,2}(?:[ \t]{0,4}\n[ \t>]{0,8}[A-Za-z0-9+/_-]+={0,2})*",
}
"""RE2 expressions of all that may be an encoded run, by codec, and of more."""
_ANY_RUN: Final = re2.compile(
    rb"[A-Za-z0-9+/_-]{14}|%[0-9A-Fa-f]{2}|\\[\"\\/bfnrtu]|&#"
    rb"|(?:[0-9A-Fa-f]{2}(?:, ?|[ :-])?(?:\\x|0x)?){4}"
)
RUN_SIGN: Final = 64
"""In so many characters before each character of an encoded run, and behind it, `may_have_runs`
finds the run."""


def may_have_runs(text: str) -> bool:
    """Whether anything in the text looks like a part of an encoded run. Most texts have nothing."""
    return bool(_ANY_RUN.search(text.encode(errors="replace")))


def encoded_runs(text: str) -> list[tuple[Codec, Replacement]]:
    """All encoded runs with their decodings, in order and without overlaps, in linear time.

    Together the decodings are no longer than the text.
    """
    if not may_have_runs(text):
        return []
    candidates = sorted(
        [*_escapes(text), *_urls(text), *_hexes(text), *_base64s(text)],
        key=lambda run: run[1].start,
    )
    runs: list[tuple[Codec, Replacement]] = []
    for codec, edit in candidates:
        if not runs or runs[-1][1].end <= edit.start:
            runs.append((codec, edit))
    return runs


def _escapes(text: str) -> Iterator[tuple[Codec, Replacement]]:
    if "\\" in text or "&#" in text:
        for run in _ESCAPE.finditer(text):
            yield "escape", Replacement(run.start(), run.end(), _ESCAPED.sub(_unescape, run[0]))


def _unescape(escape: re.Match[str]) -> str:
    if escape[2]:
        return html.unescape(escape[2])
    if escape[3]:
        return _SIGNS.get(escape[3], escape[3])
    code = int(escape[1], 16)
    return chr(code) if code < 0x110000 else escape[0]


def _urls(text: str) -> Iterator[tuple[Codec, Replacement]]:
    if "%" in text:
        for run in _URL.finditer(text):
            decoded = unquote(run[0])
            if "\N{REPLACEMENT CHARACTER}" not in decoded:
                yield "url", Replacement(run.start(), run.end(), decoded)


def _hexes(text: str) -> Iterator[tuple[Codec, Replacement]]:
    if not _ANY_HEX.search(text):
        return
    for run in _HEX.finditer(text):
        digits = _HEX_MARKS.sub("", run[0])
        digits = digits[: len(digits) // 2 * 2]
        marked = "\\x" in run[0] or "0x" in run[0]
        if len(digits) < (8 if marked else 12):
            continue
        decoded = _legible(bytes.fromhex(digits))
        if decoded:
            yield "hex", Replacement(run.start(), run.end(), decoded)


def _base64s(text: str) -> Iterator[tuple[Codec, Replacement]]:
    done = 0
    for run in _BASE64.finditer(text):
        if run.start() < done:
            continue
        lines, ends = [run[0]], [run.end()]
        while line := _BASE64_LINE.match(text, ends[-1]):
            width = max(map(len, lines[:2]))
            lines.append(line[1])
            ends.append(line.end(1))
            if len(line[1]) < width:
                break
        done = ends[-1]
        # The last line may be the first word of the following text; decoded, it makes no sense.
        counts = dict.fromkeys((len(lines), max(1, len(lines) - 1), 1))
        attempts = [(count, _from_base64("".join(lines[:count]))) for count in counts]
        legible = [(count, decoded) for count, decoded in attempts if decoded]
        if legible:
            count, decoded = min(legible, key=lambda pair: (pair[1].odd, -pair[0]))
            done = ends[count - 1]
            yield "base64", Replacement(run.start() + decoded.skipped, done, decoded.text)


class _Decoded(NamedTuple):
    odd: int
    skipped: int
    text: str


def _from_base64(run: str) -> _Decoded | None:
    # Other letters may precede the run without a gap: all four phases are tried.
    digits = run.rstrip("=").replace("-", "+").replace("_", "/")
    for skipped in range(4):
        part = digits[skipped:]
        part = part[:-1] if len(part) % 4 == 1 else part
        try:
            text = _legible(binascii.a2b_base64(part + "=" * (-len(part) % 4)))
        except binascii.Error:
            continue
        if text:
            return _Decoded(_odd(text), skipped, text)
    return None


def _odd(text: str) -> int:
    # The number of characters that no legible text has.
    return sum(not (char.isprintable() or char.isspace()) or char == "\ufffd" for char in text)


def _legible(data: bytes) -> str | None:
    # most are keys, names or paths that decode to noise: counting it is faster than reading it
    noise = len(data) - len(data.translate(None, _CONTROLS))
    if noise > (len(data) // 8 if len(data) > _SHORT else 0):
        return None
    text = data.decode("utf-8", "replace")
    if noise + text.count("\ufffd") > (len(text) // 8 if len(text) > _SHORT else 0):
        return None
    wordy = sum(char.isalnum() or char.isspace() for char in text)
    allowed = len(text) // 8 if len(text) > _SHORT else 0
    return text if _odd(text) <= allowed and 2 * wordy >= len(text) > 0 else None
