"""Runs of a text that are encoded, and their decodings: all families of encodings in two tables.

`CODECS` are told by how their runs look. `UNMARKED` have no sign: there a decoding counts if it
reads as a language and the text itself does not. A decoding may be encoded again; the caller checks
that (`views.layers`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import re2

from classifiers.text.disguises.codecs import ciphers, wording
from classifiers.text.disguises.codecs.alphabets import ALPHABET
from classifiers.text.disguises.codecs.base import SIGN_REACH, Codec
from classifiers.text.disguises.codecs.bases import BASE64
from classifiers.text.disguises.codecs.escapes import ESCAPE, URL
from classifiers.text.disguises.codecs.markup import MARKUP
from classifiers.text.disguises.codecs.numbers import HEX
from classifiers.text.disguises.rewriting import Replacement

CODECS: Final[Sequence[Codec]] = (ESCAPE, URL, HEX, BASE64, ALPHABET, MARKUP)
UNMARKED: Final[Mapping[str, Callable[[str], Iterator[Replacement]]]] = {
    "cipher": ciphers.deciphered,
    "wording": wording.worded,
}
_WHOLE: Final[Mapping[str, Callable[[str], Iterator[Replacement]]]] = {"wording": wording.acrostics}
"""What replaces whole texts comes last: it would hide all runs in them. Their decoding shows it."""
_UNSETTLED: Final[Mapping[str, Callable[[str], int]]] = {
    "cipher": ciphers.unsettled,
    "wording": wording.unsettled,
}
RUNS: Final[Mapping[str, str]] = {codec.name: codec.run for codec in CODECS}
"""RE2 expressions of all that may be an encoded run, by codec, and of more."""
RUN_SIGN: Final = SIGN_REACH
"""In so many characters before each character of an encoded run, and behind it, `may_have_runs`
finds the run."""
ENCODINGS: Final = frozenset({*RUNS, *UNMARKED})
"""The names of all families."""


def may_have_runs(text: str, wanted: frozenset[str] = ENCODINGS) -> bool:
    """Whether anything in the text looks like a part of a run of the `wanted` families. Most texts
    have nothing."""
    signs = _signs(wanted)
    return signs is not None and bool(signs.search(text.encode(errors="replace")))


@functools.lru_cache(256)
def _signs(wanted: frozenset[str]) -> Any:
    signs = [f"(?:{codec.sign})" for codec in CODECS if codec.name in wanted]
    return re2.compile("|".join(signs).encode()) if signs else None


def encoded_runs(text: str, wanted: frozenset[str] = ENCODINGS) -> list[tuple[str, Replacement]]:
    """All encoded runs of the `wanted` families with their decodings, in linear time.

    They are in order and without overlaps: of two that overlap, a run with a sign comes first, then
    the one that begins first, then the longer one; an acrostic comes last.
    """
    found: list[tuple[str, Replacement]] = []
    if may_have_runs(text, wanted):
        for codec in CODECS:
            if codec.name in wanted and may_have_runs(text, frozenset({codec.name})):
                found += ((codec.name, edit) for edit in codec.decode(text))
    runs = _apart(found, [])
    for finders in (UNMARKED, _WHOLE):
        unmarked = [(name, find) for name, find in finders.items() if name in wanted]
        runs = _apart([(name, edit) for name, find in unmarked for edit in find(text)], runs)
    return runs


def _apart(
    found: list[tuple[str, Replacement]], taken: list[tuple[str, Replacement]]
) -> list[tuple[str, Replacement]]:
    """Those taken, and of those found what overlaps neither them nor one that begins before."""
    if not found:
        return taken
    found.sort(key=lambda run: (run[1].start, -run[1].end))
    runs: list[tuple[str, Replacement]] = []
    at = 0
    done = -1
    for name, edit in found:
        while at < len(taken) and taken[at][1].start < edit.end:
            if taken[at][1].end > edit.start:
                break
            at += 1
        is_free = at == len(taken) or taken[at][1].start >= edit.end
        if is_free and edit.start >= done:
            runs.append((name, edit))
            done = edit.end
    return sorted([*taken, *runs], key=lambda run: run[1].start) if taken else runs


def unsettled_from(text: str, wanted: frozenset[str]) -> int:
    """The position from which families without a sign may read a text that goes on differently."""
    return min((_UNSETTLED[name](text) for name in wanted & UNMARKED.keys()), default=len(text))
