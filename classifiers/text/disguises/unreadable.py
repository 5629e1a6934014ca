"""Stretches of a text that are encoded, and that nothing here turns into a language.

They are as long as a request. Not meant are keys, digests, identifiers, addresses, files in data
URLs, program code and other languages. All takes time linear in the text.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import unicodedata
from collections.abc import Iterator
from typing import Final

import numpy as np

from classifiers.text.disguises.language import NATS, codes_of, nats_of
from classifiers.text.disguises.views import View, layers

_FOREIGN: Final = 5.0
"""Nats per letter that no language has which is written in Latin letters: other ones have up to 4,
enciphered ones 7."""
_FEWEST_LETTERS: Final = 24
_FEWEST_WORDS: Final = 4
_ENOUGH: Final = 30.0
"""Nats over _FOREIGN of a stretch."""
_WORDS: Final = re.compile(r"(?<!\S)[\"'(]?[A-Za-z]{2,24}[.,;:!?)\"']{0,2}(?:\s{1,3}|\Z)")
_CAPITALS: Final = 5
"""Words in capitals up to so long are abbreviations."""
_FEWEST_DIGITS: Final = 120
"""Digits of a blob."""
_LINE: Final = re.compile(r"[A-Za-z0-9+/_-]{48,}+={0,2}")
_NEXT_LINE: Final = re.compile(
    r"[ \t]{0,4}\r?\n[ \t>]{0,8}"
    r"([A-Za-z0-9+/_-]{12,}+={0,2}|[A-Za-z0-9+/_-]++={0,2}(?=[ \t]{0,4}(?:\r?\n|\Z)))"
)
"""A last line may be short; if other words follow, a short one is more likely a word."""
_BEFORE_BLOB: Final = re.compile(
    r"(?:;base64,\s?|-----[\s>]{1,12}(?:[A-Z][\w-]{1,30}: [^\n]{0,99}\n[\s>]{0,12}){0,4}"
    r"|\bssh-[a-z0-9]{2,10} |\bsha\d{3}-|://\S{0,200}|[.?&#%])\Z"
)
"""The start of a data URL, of a certificate or key, with its headers, of a digest; a part of an
address or of a token in parts."""
_DIGESTS: Final = frozenset({56, 64, 96, 128, 160, 192, 256})
"""Hexadecimal digits of digests, which may be a list."""
_FILES: Final = tuple(
    base64.b64encode(head)[: len(head) * 4 // 3]
    for head in (
        *(b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"%PDF-", b"PK\x03\x04"),
        *(b"wOFF\x00\x01", b"wOF2\x00\x01", b"RIFF", b"ID3", b"OggS\x00", b"\x00\x00\x01\x00"),
    )
)
_HEX: Final = re.compile(r"[0-9A-Fa-f]+")
_BITS: Final = re.compile(r"(?:[01]{7,8}[ ,\n]?){24,}+")
_MIXED: Final = re.compile(r"[^\W\d_]{16,}+")
_FEWEST_SCRIPTS: Final = 3
_OF_ONE_WRITING: Final = frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"})
_AFTER_LATIN: Final = "\u0250"
_PICTURES: Final = re.compile(r"[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f\u200d ]{24,}+")
_FEWEST_PICTURES: Final = 16


def unreadable(text: str) -> list[tuple[int, int]]:
    """The stretches, in order and without overlaps, as positions in `text`."""
    *_, last = layers(text)
    spans = sorted(_stretches(text, last))
    kept: list[tuple[int, int]] = []
    for start, end in spans:
        if kept and start < kept[-1][1]:
            kept[-1] = kept[-1][0], max(end, kept[-1][1])
        else:
            kept.append((start, end))
    return kept


def is_unreadable(text: str) -> bool:
    """Whether a text that has no encoded runs has a stretch."""
    return any(True for _ in _stretches(text, next(layers(text))))


def _stretches(text: str, layer: View) -> Iterator[tuple[int, int]]:
    for words in _foreign_words(layer.text):
        start, end = layer.span(*words)
        # letters of other scripts were replaced by their Latin lookalikes
        if max(text[start:end]) < _AFTER_LATIN:
            yield start, end
    for span in (*_blobs(layer.text), *_symbols(layer.text)):
        yield layer.span(*span)


def _foreign_words(text: str) -> Iterator[tuple[int, int]]:
    """Words of Latin letters that are of no language."""
    codes = codes_of(text)
    is_word = np.zeros(len(codes), bool)
    for word in _WORDS.finditer(text):
        letters = word[0].strip("\"'(.,;:!?) \n\t")
        if not (letters.isupper() and len(letters) <= _CAPITALS):
            is_word[word.start() : word.end()] = True
    if not is_word.any():
        return
    gains = nats_of(codes, "any") * np.float32(NATS) - np.float32(_FOREIGN) * (codes > 0)
    gains = np.where(is_word, gains, np.float32(-1e6)).astype(np.float64)
    sums = np.cumsum(gains)
    sums -= np.minimum.accumulate(np.minimum(sums, 0))
    is_inside = np.concatenate([[False], sums > 0, [False]])
    edges = np.flatnonzero(np.diff(is_inside.astype(np.int8)))
    if not len(edges):
        return
    peaks = np.maximum.reduceat(sums, edges[::2])
    high = peaks >= _ENOUGH
    for start, end in zip(edges[::2][high], edges[1::2][high], strict=True):
        peak = int(start + np.argmax(sums[start:end])) + 1
        stretch = text[start:peak]
        has_words = len(stretch.split()) >= _FEWEST_WORDS
        count = int(np.count_nonzero(codes[start:peak]))
        if has_words and count >= _FEWEST_LETTERS:
            yield int(start), peak


def _blobs(text: str) -> Iterator[tuple[int, int]]:
    """Bytes in letters and digits that are no file, key or digest."""
    for start, end, lines in _blocks(text):
        blob = "".join(lines)
        if len(blob.rstrip("=")) < _FEWEST_DIGITS:
            continue
        if _BEFORE_BLOB.search(text, max(0, start - 240), start):
            continue
        if _HEX.fullmatch(blob):
            # digests in a list are all of one length: a shorter last line is the end of a text
            is_list = len(lines[-1]) == len(lines[0]) in _DIGESTS
            is_code = is_list or len(blob) in _DIGESTS
        else:
            is_code = blob.encode().startswith(_FILES) or not _is_random(blob)
        if not is_code:
            yield start, end


def _blocks(text: str) -> Iterator[tuple[int, int, list[str]]]:
    """Long runs of letters and digits; lines of one width are one run, with a shorter last one."""
    end = 0
    while run := _LINE.search(text, end):
        lines, end = [run[0]], run.end()
        while len(lines[-1]) == len(lines[0]) and lines[-1][-1] != "=":
            line = _NEXT_LINE.match(text, end)
            if line is None or len(line[1]) > len(lines[0]):
                break
            lines.append(line[1])
            end = line.end()
        yield run.start(), end, lines


def _is_random(blob: str) -> bool:
    """Whether letters and digits are as those of encoded bytes: no path, no name, no filling."""
    digits = sum(map(str.isdigit, blob))
    capitals = sum(map(str.isupper, blob))
    if not (len(blob) // 20 <= digits and len(blob) // 5 <= capitals <= len(blob) * 2 // 3):
        return False
    try:
        data = base64.b64decode(blob[: len(blob) // 4 * 4], altchars=b"-_" if "-" in blob else None)
    except binascii.Error:
        return False
    return len(set(data)) > math.sqrt(len(data))


def _symbols(text: str) -> Iterator[tuple[int, int]]:
    """Bits, pictures and letters of many scripts in place of letters."""
    for run in _BITS.finditer(text):
        yield run.span()
    if text.isascii():
        return
    for run in _PICTURES.finditer(text):
        if len(set(run[0])) >= _FEWEST_PICTURES:
            yield run.span()
    for run in _MIXED.finditer(text):
        scripts = {unicodedata.name(char, "").partition(" ")[0] for char in set(run[0])}
        if len(scripts - _OF_ONE_WRITING) >= _FEWEST_SCRIPTS:
            yield run.span()
