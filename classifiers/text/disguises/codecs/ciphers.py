"""Texts under a cipher without a secret: other letters for letters, or letters in another order.

No sign tells them: what reads as English after decoding, and does not before, was enciphered. A
stretch of words ends at an English function word of three letters or more, which no cipher leaves.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from classifiers.text.disguises.language import (
    NATS,
    codes_of,
    is_common,
    is_language,
    letters_in,
    nats_of,
)
from classifiers.text.disguises.respelling import FUNCTION_WORDS
from classifiers.text.disguises.rewriting import Replacement

_SMALL: Final = string.ascii_lowercase
_PRINTABLE: Final = "".join(map(chr, range(33, 127)))
_FEWEST: Final = 10
"""Letters from which on a stretch may be enciphered."""
_FEWEST_KINDS: Final = 5
"""Different characters of a text."""
_FOREIGN: Final = 4.3
"""Nats per letter from which on letters are no English: a short English text may have 4."""
_GAIN: Final = 1.5
"""Nats per letter by which a decoding must be likelier than the text."""
_ENOUGH: Final = 13.0
"""Nats by which all of a decoding must be likelier than letters that are just no English."""
_LIKELY: Final = 3.8
"""Nats per letter of letters that are just no English."""
_SIGN_NATS: Final = 1.0
_SIGN_UNLIKELY: Final = 8.0
"""Nats of a sign or a digit in a word."""
_BREAK: Final = -1e6
_BLOCK: Final = 8192
_WINDOW: Final = 16
"""Characters in which a foreign stretch is noticed."""
_LONGEST_LINE: Final = 2000
_MOST_LINES: Final = 400
"""Lines whose characters may stand in another order: of more, the first and the last."""
_LINE: Final = re.compile(r"[^\s:](?:[^\n:]|:(?!\s))*(?<!\s)")
_MOST_RAILS: Final = 5
_ENDS: Final = frozenset(word for word in FUNCTION_WORDS if len(word) > 2)
_AY: Final = re.compile(r"\b([A-Za-z]{1,24}?)(w?ay)\b", re.IGNORECASE)
_TOKEN: Final = re.compile(r"\S{1,40}")
_NEAR: Final = 60
"""Characters beside a stretch in which words that may be anything belong to it."""
_WORD: Final = re.compile(r"[A-Za-z]+")
_ANY_AY: Final = re.compile(r"[A-Za-z](?:ay|AY)\b")
_ONSETS: Final = 3
_SHARE_AY: Final = 0.6

Spans = Sequence[tuple[int, int]]


def _table(before: str, after: str) -> dict[int, str]:
    return dict(zip(map(ord, before), after, strict=True))


_SUBSTITUTIONS: Final = (
    *(
        _table(_SMALL + _SMALL.upper(), turned + turned.upper())
        for turned in (_SMALL[shift:] + _SMALL[:shift] for shift in range(1, 26))
    ),
    _table(_SMALL + _SMALL.upper(), _SMALL[::-1] + _SMALL[::-1].upper()),
    _table(_PRINTABLE, _PRINTABLE[47:] + _PRINTABLE[:47]),
)
_CODES: Final = np.stack(
    [codes_of("".join(map(chr, range(256))).translate(table)) for table in _SUBSTITUTIONS]
)
"""What each substitution makes of a byte, as `language.codes_of`: `[substitutions, 256]`."""
_IS_SIGN: Final = np.stack(
    [
        [not (table.get(code, chr(code)).isalpha() or code == 32) for code in range(256)]
        for table in _SUBSTITUTIONS
    ]
)


def deciphered(text: str) -> Iterator[Replacement]:
    """What can be deciphered of a text."""
    if len(text) < _FEWEST:
        return
    codes = codes_of(text)
    # by how much the letters up to each place are less likely than letters that are just foreign
    unlikely = np.cumsum(
        nats_of(codes) - np.float32(_FOREIGN / NATS) * (codes > 0), dtype=np.float64
    )
    unlikely = np.concatenate([[0], unlikely])
    size = min(_WINDOW, len(text))
    if len(_ANY_AY.findall(text)) > 2:
        for start, end in _lines(text, _stretches(text)):
            yield from _pig_latin(text[start:end], start)
    windows = unlikely[size:] > unlikely[:-size]
    if not windows.any():
        return
    before = np.concatenate([[0], np.cumsum(windows)])

    def is_foreign(span: tuple[int, int]) -> bool:
        """Whether a stretch is foreign, or has a window that is."""
        start, end = span
        if end - start < max(size, _FEWEST):
            return end - start >= _FEWEST and bool(unlikely[end] > unlikely[start])
        return bool(before[end - size + 1] > before[start])

    stretches = [span for span in _stretches(text) if is_foreign(span)]
    if stretches:
        yield from _substituted(text, stretches)
    lines = [line for line in _lines(text, stretches) if is_foreign(line)]
    if len(lines) > _MOST_LINES:
        lines = lines[: _MOST_LINES // 2] + lines[-_MOST_LINES // 2 :]
    for start, end in lines:
        if edit := _transposed(text[start:end], codes[start:end], start):
            yield edit


def unsettled(text: str) -> int:
    """The position from which `deciphered` may read a text that goes on differently."""
    # with the space behind a word, so that the word ends in what is settled too
    ends = [end + text[end].isspace() for _, end in _ends(text) if end < len(text)]
    return max(ends, default=0)


def _ends(text: str) -> Iterator[tuple[int, int]]:
    """Function words of three letters or more."""
    for word in _WORD.finditer(text):
        if word[0].lower() in _ENDS:
            yield word.span()


def _stretches(text: str) -> Iterator[tuple[int, int]]:
    """What stands between function words."""
    start = 0
    for first, end in _ends(text):
        yield start, first
        start = end
    yield start, len(text)


def _lines(text: str, stretches: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The lines of stretches, and what stands behind colons."""
    for first, last in stretches:
        for line in _LINE.finditer(text, first, last):
            if line.end() - line.start() <= _LONGEST_LINE:
                yield line.span()


def _substituted(text: str, stretches: Spans) -> Iterator[Replacement]:
    """The parts of stretches that a substitution turns into English."""
    raw = np.frombuffer(text.encode("latin-1", "replace"), np.uint8)
    places = np.concatenate([np.append(np.arange(*span), -1) for span in stretches])
    taken = bytearray(len(text))
    for first in range(0, len(places), _BLOCK):
        yield from _substituted_block(text, raw, places[first : first + _BLOCK], taken)


def _substituted_block(
    text: str, raw: NDArray[np.uint8], places: NDArray[np.int64], taken: bytearray
) -> Iterator[Replacement]:
    characters = raw[places]
    clear = codes_of(characters.tobytes().decode("latin-1"))
    in_clear = np.maximum(_excess(clear[None]), 0)
    gains = _excess(_CODES[:, characters]) - in_clear - _SIGN_NATS * _IS_SIGN[:, characters]
    gains[:, places < 0] = _BREAK
    sums = np.cumsum(gains, axis=1, dtype=np.float64)
    sums -= np.minimum.accumulate(np.minimum(sums, 0), axis=1)
    found: list[tuple[float, int, int, int]] = []
    for number in np.flatnonzero(sums.max(1) >= _ENOUGH):
        row = sums[number]
        is_inside = np.concatenate([[False], row > 0, [False]])
        edges = np.flatnonzero(np.diff(is_inside.astype(np.int8)))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            peak = int(start + np.argmax(row[start:end]))
            if row[peak] >= _ENOUGH:
                found.append((float(row[peak]), int(number), int(places[start]), int(places[peak])))
    for _, index, first, last in sorted(found, reverse=True):
        if taken[first] or taken[last]:
            continue
        edit = _decoded(text, _SUBSTITUTIONS[index], first, last + 1)
        if edit is not None:
            taken[edit.start : edit.end] = b"\1" * (edit.end - edit.start)
            yield edit


def _decoded(text: str, table: dict[int, str], start: int, end: int) -> Replacement | None:
    if not _is_varied(text[max(0, start - _NEAR) : end + _NEAR].translate(table)):
        return None
    start, end = _whole_words(text, table, start, end)
    decoded = text[start:end].translate(table)
    letters, clear = letters_in(decoded), letters_in(text[start:end])
    if letters.size < _FEWEST or not _is_varied(decoded) or not is_language(decoded):
        return None
    if clear.size and clear.mean < letters.mean + _GAIN:
        return None
    return Replacement(start, end, decoded, range(start, end))


def _is_varied(text: str) -> bool:
    return len(set(text.lower())) >= _FEWEST_KINDS


def _whole_words(text: str, table: dict[int, str], start: int, end: int) -> tuple[int, int]:
    """The bounds of the words from `start` to `end` and beside them that are likelier decoded."""
    near = max(0, start - _NEAR)
    words = [word.span() for word in _TOKEN.finditer(text, near, end + _NEAR)]
    inside = [n for n, (first, last) in enumerate(words) if first < end and last > start]

    def is_likelier(number: int) -> bool:
        first, last = words[number]
        return _with_signs(text[first:last].translate(table)) < _with_signs(text[first:last])

    # from the edges, since each word that is looked at costs as much as a line
    first, last = (inside[0], inside[-1]) if inside else (0, -1)
    while first <= last and not is_likelier(first):
        first += 1
    if first > last:
        return start, start
    while last > first and not is_likelier(last):
        last -= 1
    while first and is_likelier(first - 1):
        first -= 1
    while last + 1 < len(words) and is_likelier(last + 1):
        last += 1
    return words[first][0], words[last][1]


def _with_signs(word: str) -> float:
    letters = letters_in(word)
    return letters.nats + _SIGN_UNLIKELY * (len(word) - letters.size)


def _excess(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """By how much each character is likelier than letters that are just no English;
    `codes [rows, n]`."""
    nats = np.stack([nats_of(row) for row in codes])
    excess = _LIKELY - nats.astype(np.float32) * np.float32(NATS)
    return np.where(codes > 0, excess, np.minimum(excess, 0))


def _transposed(line: str, codes: NDArray[np.uint8], start: int) -> Replacement | None:
    """A line whose characters stand in another order: in zigzag, or from the end."""
    count = np.count_nonzero(codes)
    if count < _FEWEST:
        return None
    orders = list(_orders(codes))
    gap = np.zeros(1, np.uint8)
    nats = [int(nats_of(np.append(codes[order], gap)).sum()) for order in orders]
    clear, *others = (total * NATS / count for total in nats)
    best = int(np.argmin(others))
    order = orders[1 + best]
    decoded = "".join(line[place] for place in order)
    if others[best] > clear - _GAIN or not is_language(decoded):
        return None
    return Replacement(start, start + len(line), decoded, [start + int(place) for place in order])


def _orders(codes: NDArray[np.uint8]) -> Iterator[NDArray[np.int64]]:
    """The places of characters in the order in which they may be read, as they stand first."""
    size = len(codes)
    places = np.arange(size)
    yield places
    yield places[::-1]
    is_letter = codes > 0
    edges = np.diff(np.concatenate([[0], is_letter.astype(np.int8), [0]]))
    firsts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    words = places.copy()
    words[is_letter] = np.repeat(firsts + ends - 1, ends - firsts) - places[is_letter]
    yield words
    for rails in range(2, _MOST_RAILS + 1):
        period = 2 * rails - 2
        rail_of = np.minimum(places % period, period - places % period)
        order = np.empty(size, np.int64)
        order[np.argsort(rail_of, kind="stable")] = places
        yield order


def _unlikelihood(word: str) -> float:
    return 0.0 if is_common(word) else letters_in(word).mean


def _pig_latin(line: str, start: int) -> Iterator[Replacement]:
    """The words of a line in pig latin, if most of its words are."""
    turned = [word for word in _AY.finditer(line) if not is_common(word[0].lower())]
    if len(turned) < max(3, _SHARE_AY * len(_WORD.findall(line))):
        return
    for word in turned:
        stem, ending = word[1].lower(), word[2].lower()
        whole = stem + "w" if ending == "way" else stem
        # behind a word that begins with a vowel stands way, and also yay or hay
        options = [stem] if ending == "way" else []
        options += [
            whole[-count:] + whole[:-count]
            for count in range(1, min(_ONSETS, len(whole)) + 1)
            if not set(whole[-count:]) & set("aeio")
        ]
        if len(stem) > 1 and stem[-1] in "yh" and stem[0] in "aeiou":
            options.append(stem[:-1])
        likeliest = min(options or [whole], key=_unlikelihood)
        yield Replacement(start + word.start(), start + word.end(), likeliest)
