"""Matches of words (Aho-Corasick, with typing errors too) and regular expressions (RE2) in a text,
through its disguises.

All take time linear in the text, whatever the text. Matches are spans of the raw text: cutting
them out removes the match together with its disguise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import ahocorasick_rs
import re2

from classifiers.text.disguises.decoding import RUNS, may_have_runs
from classifiers.text.disguises.folding import fold, fold_simple, uncover
from classifiers.text.disguises.views import PLAIN, View, folded_views, layers
from classifiers.text.patterns.candidates import LOOKBACK, Expression
from classifiers.text.patterns.files import Patterns, Words, parse
from classifiers.text.patterns.pending import PendingText
from classifiers.text.patterns.recognizers import SHIPPED, Shipped
from classifiers.text.patterns.scanning import Expressions
from classifiers.text.patterns.words.approximate import ApproximateWords
from classifiers.text.patterns.words.partial import in_word

_MAX_GAP: Final = 4
"""The most white space between two words of a phrase, in characters."""


@dataclass(frozen=True, slots=True, order=True)
class Match:
    """text[start:end] of the raw text is a `label`; `view` names the view in which it was found.

    `confidence` and `country` are those of the finding (`classifiers.text.patterns.candidates`).
    """

    start: int
    end: int
    label: str
    view: str
    confidence: float = 1.0
    country: str | None = field(default=None, compare=False)


class _Kind(NamedTuple):
    label: str
    whole: bool
    views: frozenset[str]


class PatternSet:
    """Lists of patterns that are searched together.

    `labels` are the possible labels of matches. `longest` is the most folded characters that a
    match in plain text can have: a stream is screened again from so far back.
    """

    def __init__(self, patterns: Patterns) -> None:
        words, phrases = _split(patterns.words)
        self._words = list(words.values())
        self._automaton = ahocorasick_rs.AhoCorasick(list(words)) if words else None
        misspelt = _kinds(entry for entry in patterns.words if entry.typos)
        self._misspelt = list(misspelt.values())
        self._approximate = ApproximateWords(list(misspelt))
        folded = [_phrases(kind, texts) for kind, texts in phrases.items()]
        folded += [each for each in patterns.expressions if not each.raw]
        raw = [each for each in patterns.expressions if each.raw]
        self._raw = Expressions(raw, raw=True)
        self._folded = Expressions(folded, raw=False)
        views = [entry.views for entry in patterns.words]
        views += [each.views for each in patterns.expressions]
        self._patterns = patterns
        self._steps = frozenset[str]().union(*views)
        has_words = self._automaton is not None or bool(self._approximate)
        self.reads_plainly = not has_words and self._steps <= {PLAIN, *RUNS}
        """Whether it has no words, and undoes no disguises but encoded runs."""
        labels = (each.labels for each in patterns.expressions)
        self.labels = frozenset(entry.label for entry in patterns.words).union(*labels)
        widths = [each.longest for each in patterns.expressions]
        texts = [text for entry in patterns.words for text in _spellings(entry.words)]
        gaps = [len(text) + (_MAX_GAP - 1) * text.count(" ") for text in texts]
        self.longest = int(max([*widths, *gaps, self._approximate.longest]))

    @classmethod
    def from_toml(cls, text: str) -> PatternSet:
        """The patterns of a TOML text, see `files`. Raises ValueError that says what is wrong."""
        return cls(parse(text))

    @classmethod
    def load(cls, path: Path | str) -> PatternSet:
        """The patterns of a TOML file. Raises ValueError that names the file and what is wrong."""
        try:
            return cls.from_toml(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def joined(cls, sets: Sequence[PatternSet]) -> PatternSet:
        """Several sets as one set, which undoes the disguises of a text once for all."""
        if len(sets) == 1:
            return sets[0]
        return cls(
            Patterns(
                tuple(entry for patterns in sets for entry in patterns._patterns.words),
                tuple(entry for patterns in sets for entry in patterns._patterns.expressions),
            )
        )

    def find(self, text: str) -> list[Match]:
        """All matches, sorted and without overlaps: the leftmost, of these the longest.

        Of a match that starts inside another, the rest is a match too, so that cutting out all
        matches leaves no part of one.
        """
        if have_none([self], text):
            return []
        matches: list[Match] = []
        text_layers, text_views = _read(text, self._steps)
        for layer in text_layers:
            matches += _matches(layer, self._raw)
        if self._folded or self._automaton or self._approximate:
            for view in text_views:
                matches += self._word_matches(view)
                matches += self._misspelt_matches(view)
                matches += _matches(view, self._folded)
        return without_overlaps(_without_half_escapes(text, matches))

    def may_match(self, uncovered: bytes, folded: bytes) -> bool:
        """Whether an expression matches in the UTF-8 bytes of a text without encoded runs."""
        return self._raw.may_match(uncovered) or self._folded.may_match(folded)

    def open_from(self, text: str) -> int:
        """The position in a text that goes on from which characters may still become part of a
        match: where `find` reads the text with more after it, the matches that begin before are
        those that it finds now.

        It is `len(text)` where no match is under way. In ordinary prose the last word or two are
        open, and the time is that for these; where the text ends in an encoded run or has one
        nearby, it is linear in the text. An encoded run is open as long as it goes on.
        """
        return self._pending.start(text)

    def context_from(self, text: str, position: int) -> int:
        """From where `find` must read to find the matches that begin at `position` or later.

        `position` is one that `open_from` gave for a beginning of the text. A match that begins
        before it may be found in part, or not at all. What stands before a match is reckoned with
        up to four times its length in plain text, where it may be encoded.
        """
        return self._pending.context(text, position)

    @functools.cached_property
    def _pending(self) -> PendingText:
        entries = self._patterns.words
        return PendingText(
            [each.pattern for each in self._patterns.expressions if each.raw],
            [each.pattern for each in self._patterns.expressions if not each.raw],
            sorted({text for entry in entries for text in _spellings(entry.words)}),
            any_place=not all(entry.whole for entry in entries),
            approximate=self._approximate,
            gap=_MAX_GAP,
            steps=self._steps,
            lookback=LOOKBACK if any(each.judge for each in self._patterns.expressions) else 0,
        )

    def _word_matches(self, view: View) -> Iterator[Match]:
        if self._automaton is None:
            return
        for index, start, end in self._automaton.find_matches_as_indexes(
            view.text, overlapping=True
        ):
            for word in self._words[index]:
                counts = not word.whole or _is_whole(view.text, start, end)
                if counts and view.steps <= word.views:
                    yield Match(*view.span(start, end), word.label, view.name)

    def _misspelt_matches(self, view: View) -> Iterator[Match]:
        for found in self._approximate.find(view.text) if self._approximate else ():
            for word in self._misspelt[found.name]:
                if view.steps <= word.views:
                    yield Match(*view.span(found.start, found.end), word.label, view.name)


@functools.cache
def shipped(name: Shipped) -> PatternSet:
    """A list that comes with the package."""
    return PatternSet(Patterns((), SHIPPED[name]))


@functools.lru_cache(1)
def _read(text: str, steps: frozenset[str]) -> tuple[list[View], list[View]]:
    """The layers and the folded views of a text: several lists read one text in turn."""
    text_layers = list(layers(text, steps))
    return text_layers, folded_views(text_layers, steps)


def have_none(sets: Sequence[PatternSet], text: str) -> bool:
    """Whether it takes little to see that a text has no match of any of `sets`: most have none."""
    for patterns in sets:
        if not patterns.reads_plainly:
            return False
    data = _without_runs(text, frozenset().union(*(patterns._steps for patterns in sets)))
    return data is not None and not any(patterns.may_match(*data) for patterns in sets)


@functools.lru_cache(1)
def _without_runs(text: str, steps: frozenset[str]) -> tuple[bytes, bytes] | None:
    """The text with lookalikes replaced, and folded, as UTF-8; None where it may have encoded runs.
    Several lists ask in turn."""
    uncovered, folded = text, fold_simple(text)
    if folded is None:
        uncovered = uncover(text).text
        folded = fold(uncovered).text
    return None if may_have_runs(uncovered, steps) else (uncovered.encode(), folded.encode())


def _spellings(words: Iterable[str]) -> set[str]:
    # Capitals of other scripts may fold to another letter than their small forms do.
    cases = (case for word in words for case in (word, word.upper()))
    return {" ".join(fold(case).text.split()) for case in cases}


def _split(entries: Iterable[Words]) -> tuple[dict[str, list[_Kind]], dict[_Kind, list[str]]]:
    # Single words by their folded text, phrases by their kind.
    words: dict[str, list[_Kind]] = {}
    phrases: dict[_Kind, list[str]] = {}
    for text, kinds in _kinds(entries).items():
        if " " not in text:
            words[text] = kinds
            continue
        for kind in kinds:
            phrases.setdefault(kind, []).append(text)
    return words, phrases


def _kinds(entries: Iterable[Words]) -> dict[str, list[_Kind]]:
    """Words and phrases by their folded text."""
    kinds: dict[str, list[_Kind]] = {}
    for entry in entries:
        kind = _Kind(entry.label, entry.whole, entry.views)
        for text in sorted(_spellings(entry.words)):
            kinds.setdefault(text, []).append(kind)
    return kinds


def _phrases(kind: _Kind, texts: Iterable[str]) -> Expression:
    gap = f"(?: {{1,{_MAX_GAP}}}|[-_])"
    either = "|".join(gap.join(map(re2.escape, text.split(" "))) for text in texts)
    pattern = f"(?P<value>{either})"
    if kind.whole:
        pattern = rf"(?:^|[^\pL\pN_]){pattern}(?:[^\pL\pN_]|$)"
    return Expression(frozenset({kind.label}), pattern, None, longest=0, views=kind.views)


def _is_whole(text: str, start: int, end: int) -> bool:
    # At each end, a sign or a border to something that is no letter, digit or underscore.
    begins = start == 0 or not (in_word(text[start - 1]) and in_word(text[start]))
    return begins and (end == len(text) or not (in_word(text[end - 1]) and in_word(text[end])))


def _matches(view: View, expressions: Expressions) -> Iterator[Match]:
    for found in expressions.findings(view):
        start, end = view.span(found.start, found.end)
        yield Match(start, end, found.label, view.name, found.confidence, found.country)


def _without_half_escapes(text: str, matches: Sequence[Match]) -> Iterable[Match]:
    # In "\\nann@example.com" the letter behind the backslash is no part of the address.
    if "\\" not in text:
        return matches
    places = {(match.start, match.end) for match in matches}
    return [
        match
        for match in matches
        if (match.start + 1, match.end) not in places
        or text[max(0, match.start - 1) : match.start] != "\\"
    ]


def without_overlaps(matches: Iterable[Match]) -> list[Match]:
    """The matches sorted and without overlaps, as `PatternSet.find` gives them."""
    kept: list[Match] = []
    done = 0
    for match in sorted(matches, key=lambda m: (m.start, -m.end, m.view != PLAIN, -m.confidence)):
        if match.end > done:
            kept.append(dataclasses.replace(match, start=max(match.start, done)))
            done = match.end
    return kept
