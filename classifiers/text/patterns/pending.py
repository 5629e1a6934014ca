"""From where on a text that goes on may still be part of a match, through all its disguises.

What is settled of a text stays as it is, whatever follows; the rest may turn into anything. So the
search for partial matches (`partial`) is made in the text and in every view of what is settled of
it: an encoded run at the end, for example, may be decoded to the rest of a match that begins before
it. The letters of a spelling that is read by its words (ROT13, reversed) are settled by the next
common English word alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from classifiers.text.disguises.decoding import (
    ENCODINGS,
    RUN_SIGN,
    RUNS,
    UNMARKED,
    encoded_runs,
    may_have_runs,
    unsettled_from,
)
from classifiers.text.disguises.folding import fold, uncover
from classifiers.text.disguises.invisible_bits import unsettled_bits
from classifiers.text.disguises.respelling import (
    APART,
    backwards,
    leet,
    letters_apart,
    rot13,
    unsettled_backwards,
    unsettled_leet,
    unsettled_pairs,
    unsettled_rot13,
)
from classifiers.text.disguises.rewriting import Replacement, Rewritten
from classifiers.text.disguises.views import DEPTH, PLAIN, View, through
from classifiers.text.patterns.partial import PartialMatcher, Suffix
from classifiers.text.patterns.syntax import context_width, parse_regex
from classifiers.text.patterns.words.approximate import ApproximateWords
from classifiers.text.patterns.words.partial import PartialWords

_TAILS: Final = (192, 1024)
"""Characters at the end that are tried one after the other: few matches are longer."""
_CONTEXTS: Final = 4
"""Encoded, what stands before a match takes a few times its characters."""
_RESPELLINGS: Final[
    Sequence[tuple[str, Callable[[str], list[Replacement]], Callable[[str], int]]]
] = (
    ("leet", leet, unsettled_leet),
    ("leet", partial(leet, one="l"), unsettled_leet),
    ("rot13", rot13, unsettled_rot13),
    ("reversed", backwards, unsettled_backwards),
)


class PendingText:
    """Finds where the matches of a set of patterns may be under way at the end of a text.

    `raw` and `folded` are expressions, `words` folded words and phrases; where `any_place` is
    false, words begin at the border of a word alone; `approximate` are those that may be misspelt.
    `gap` is the most spaces between two words of
    a phrase, `steps` are the disguises that are undone, `lookback` the characters before a match
    that decide whether it is one.
    """

    def __init__(
        self,
        raw: Sequence[str],
        folded: Sequence[str],
        words: Sequence[str],
        *,
        any_place: bool,
        approximate: ApproximateWords,
        gap: int,
        steps: frozenset[str],
        lookback: int,
    ) -> None:
        contexts = (context_width(parse_regex(pattern)) for pattern in (*raw, *folded))
        self._context = lookback + int(max((context or 0 for context in contexts), default=0))
        self._raw = PartialMatcher(raw, raw=True)
        self._folded = PartialMatcher(folded, raw=False)
        self._words: list[PartialWords | ApproximateWords] = []
        if words:
            self._words.append(PartialWords(words, any_place=any_place, gap=gap))
        if approximate:
            self._words.append(approximate)
        self._codecs = steps & ENCODINGS
        self._runs = PartialMatcher(
            [run for name, run in RUNS.items() if name in self._codecs], raw=True
        )
        self._apart = PartialMatcher(APART, raw=True) if "spaced" in steps else None
        self._respellings = [entry for entry in _RESPELLINGS if entry[0] in steps]
        self._is_local = not (self._apart or self._respellings or steps & UNMARKED.keys())

    def start(self, text: str) -> int:
        """The position in `text` from which matches may be under way; its length where none is."""
        is_local = self._is_local
        for length in (*_TAILS, len(text)) if is_local else (len(text),):
            tail = text[unsettled_bits(text[: max(0, len(text) - length)]) :]
            is_whole = len(tail) == len(text)
            start = self._start_in_plain(tail, is_whole=is_whole) if is_local else None
            if start is None:
                start = self._start_in_views(tail, is_whole=is_whole)
            if start is not None:
                return min(len(text) - len(tail) + start, unsettled_bits(text))
        return 0

    def context(self, text: str, position: int) -> int:
        """See `PatternSet.context_from`."""
        if not self._is_local:
            return 0
        before = text[:position]
        place = max(0, position - 1 - _CONTEXTS * self._context)
        for length in (*_TAILS, place):
            start = unsettled_bits(before[: max(0, place - length)])
            uncovered = uncover(before[start:])
            first = self._between_runs(uncovered.text, uncovered.place(place - start))
            if first:
                # the character before tells where a run begins
                return unsettled_bits(text[: start + uncovered.origin(first - 1)])
        return 0

    def _start_in_views(self, tail: str, *, is_whole: bool) -> int | None:
        """As `start`, for the end of a text; None where that is not enough to tell."""
        uncovered = uncover(tail)
        layer = View(PLAIN, uncovered.text, uncovered.span)
        if not is_whole:
            first = self._between_runs(layer.text, len(layer.text) // 4)
            if not first:
                return None
            layer = _from(layer, first - 1)  # the character before tells where a run begins
        found = _Earliest(len(tail))
        for depth in range(DEPTH + 1):
            found.add(layer, self._raw.longest_suffix(layer.text))
            self._add_folded(found, layer)
            if depth == DEPTH or not self._codecs:
                break
            edits = [edit for _, edit in encoded_runs(layer.text, self._codecs)]
            suffix = self._runs.longest_suffix(layer.text)
            unsettled = min(suffix.start, unsettled_from(layer.text, self._codecs))
            settled = found.settled(layer, edits, suffix._replace(start=unsettled))
            again = uncover(settled.text)
            layer = View(PLAIN, again.text, through(settled.span, again.span))
        return found.start if is_whole or not found.has_read_all else None

    def _between_runs(self, text: str, place: int) -> int:
        """The last position up to `place` that is in no encoded run."""
        while (start := self._runs.longest_suffix(text[:place]).start) < place:
            place = start
        return place

    def _start_in_plain(self, tail: str, *, is_whole: bool) -> int | None:
        """As `start`, for the end of a text; None where that is not enough to tell, or where an
        encoded run is near. Most texts have none, and no other view than themselves."""
        uncovered = uncover(tail)
        text, folded = uncovered.text, fold(uncovered.text)
        if not text.isascii() and uncover(text).text != text:
            return None
        start = read = settled = first_settled = len(text)
        for depth in range(DEPTH + 1):
            part, folded_part = text[:settled], folded.text[: folded.place(settled)]
            raw_start, raw_read = self._raw.longest_suffix(part)
            folded_start, folded_read = self._folded.longest_suffix(folded_part)
            start = min(start, raw_start, folded.origin(folded_start))
            read = min(read, raw_read, folded.origin(folded_read))
            for words in self._words:
                word_start, word_read = words.longest_suffix(folded_part)
                start = min(start, folded.origin(word_start))
                read = min(read, folded.origin(word_read))
            if depth == DEPTH or not self._codecs:
                break
            run_start, run_read = self._runs.longest_suffix(part)
            read = min(read, run_read)
            if run_start == settled:
                break
            settled = run_start
            if depth == 0:
                first_settled = settled
        first = max(0, read - 1)
        if self._codecs and may_have_runs(text[max(0, first - RUN_SIGN) :], self._codecs):
            first = self._between_runs(text, first)
            before = max(0, first - 1)
            runs = encoded_runs(text[before:], self._codecs)
            if any(before + edit.start < first_settled for _, edit in runs):
                return None
        return uncovered.origin(min(start, settled)) if first or is_whole else None

    def _add_folded(self, found: _Earliest, layer: View) -> None:
        folded = fold(layer.text)
        base = View(PLAIN, folded.text, through(layer.span, folded.span))
        views = [base]
        if self._apart:
            for articles in (False, True):
                edits = letters_apart(base.text, articles=articles)
                unsettled = self._apart.longest_suffix(base.text).start
                if not any(edit.end <= unsettled for edit in edits):
                    unsettled = min(unsettled, unsettled_pairs(base.text))
                views.append(found.settled(base, edits, Suffix(unsettled, unsettled)))
        for view in views:
            self._add_view(found, view)
            for _, undo, unsettled_in in self._respellings:
                unsettled = unsettled_in(view.text)
                suffix = Suffix(unsettled, unsettled)
                self._add_view(found, found.settled(view, undo(view.text), suffix))

    def _add_view(self, found: _Earliest, view: View) -> None:
        found.add(view, self._folded.longest_suffix(view.text))
        for words in self._words:
            found.add(view, words.longest_suffix(view.text))


class _Earliest:
    """The earliest start of the suffixes of several views, in the raw text."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.has_read_all = False

    def add(self, view: View, suffix: Suffix) -> None:
        self.has_read_all = self.has_read_all or not suffix.read
        if suffix.start < len(view.text):
            self.start = min(self.start, view.span(suffix.start, len(view.text))[0])

    def settled(self, view: View, edits: Sequence[Replacement], suffix: Suffix) -> View:
        """What is settled of a view with `edits`, which is all before `suffix`."""
        unsettled = suffix.start
        for edit in edits:
            if edit.start < unsettled < edit.end:
                unsettled = edit.start
        self.add(view, Suffix(unsettled, suffix.read))
        kept = [edit for edit in edits if edit.end <= unsettled]
        rewritten = Rewritten(view.text[:unsettled], kept)
        return View(view.name, rewritten.text, through(view.span, rewritten.span))


def _from(view: View, first: int) -> View:
    """The rest of a view."""
    return View(
        view.name, view.text[first:], lambda start, end: view.span(start + first, end + first)
    )
