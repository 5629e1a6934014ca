"""Views and readings of a text: the text with the usual disguises undone.

`views` are for patterns: folded, with a map back to the raw text. `readings` are for an encoder:
few, since each costs a pass, and only one for an ordinary text. Disguises that are commonly stacked
are undone in sequence: an encoded run may be encoded again, up to `DEPTH` times, and the decoded
text may have its letters apart and be in leet.

All functions take time linear in the length of the text. Most decodings are as long as their runs
or shorter; words that were run together get spaces, fewer than letters, and packed runs are
unpacked to three times their length at most. So no layer is over three times as long as the one
before it, and since one of over `_MOST_GROWTH` times the text is the last, none is over twelve
times as long as the text, but for what its folding adds.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from classifiers.text.disguises.decoding import ENCODINGS, encoded_runs
from classifiers.text.disguises.folding import fold, readable, uncover
from classifiers.text.disguises.respelling import backwards, leet, letters_apart, rot13
from classifiers.text.disguises.rewriting import Replacement, Rewritten

PLAIN: Final = "plain"
STEPS: Final = ENCODINGS | {PLAIN, "spaced", "leet", "rot13", "reversed"}
"""Names of the disguises; the name of a view lists those that were undone: "base64+leet"."""
DEPTH: Final = 3
_MOST_GROWTH: Final = 4
"""A layer so many times as long as the text is the last."""

Span = Callable[[int, int], tuple[int, int]]
_Undo = Callable[[str], list[Replacement]]

_APART: Final = (partial(letters_apart), partial(letters_apart, articles=True))
_RESPELLED: Final[tuple[tuple[str, _Undo], ...]] = (
    ("leet", leet),
    ("leet", partial(leet, one="l")),
    ("rot13", rot13),
    ("reversed", backwards),
)
_WARY_APART: Final[tuple[_Undo, ...]] = tuple(partial(undo, wary=True) for undo in _APART)
_WARY: Final[tuple[_Undo, ...]] = (partial(leet, wary=True), rot13, backwards)


_FEWEST_SPACES: Final = 3
"""Escaped spaces from which on an address is a sentence."""
_OF_ADDRESSES: Final = frozenset({"url", "escape"})
_DISGUISED: Final = re.compile(r"[^\W\d_]|[%&\\]")


@dataclass(frozen=True, slots=True)
class View:
    """One reading of a raw text; `span(start, end)` is the position of text[start:end] in it.

    The span of a part of a decoded run is the whole run.
    """

    name: str
    text: str
    span: Span

    @property
    def steps(self) -> frozenset[str]:
        """The disguises that were undone, or "plain"."""
        return _steps(self.name)


@functools.lru_cache(1024)
def _steps(name: str) -> frozenset[str]:
    return frozenset(name.split("+"))


def layers(text: str, wanted: frozenset[str] = STEPS) -> Iterator[View]:
    """The text with lookalikes replaced and its case kept, then with encoded runs decoded.

    Each layer decodes the runs of the layer before it, of the `wanted` steps.
    """
    uncovered = uncover(text)
    layer = View(PLAIN, uncovered.text, uncovered.span)
    yield layer
    for _ in range(DEPTH):
        runs = encoded_runs(layer.text, wanted)
        if not runs or len(layer.text) > _MOST_GROWTH * len(text):
            return
        codecs = list(dict.fromkeys(codec for codec, _ in runs))
        rewritten = Rewritten(layer.text, [edit for _, edit in runs])
        uncovered = uncover(rewritten.text)
        span = through(layer.span, rewritten.span, uncovered.span)
        layer = View(_name(layer.name, *codecs), uncovered.text, span)
        yield layer


def views(text: str) -> list[View]:
    """The folded text, named "plain", and all other views that differ from those before them."""
    return folded_views(layers(text))


def folded_views(text_layers: Iterable[View], wanted: Container[str] = STEPS) -> list[View]:
    """The views of a text, given its `layers`, with the `wanted` steps alone."""
    by_text: dict[str, View] = {}
    for layer in text_layers:
        folded = fold(layer.text)
        base = View(layer.name, folded.text, through(layer.span, folded.span))
        spaced = [_undone(base, "spaced", undo) for undo in _APART if "spaced" in wanted]
        for view in (base, *spaced):
            if view is not None and view.text not in by_text:
                by_text[view.text] = view
                for step, undo in _RESPELLED:
                    respelled = _undone(view, step, undo) if step in wanted else None
                    if respelled is not None:
                        by_text.setdefault(respelled.text, respelled)
    return list(by_text.values())


def readings(text: str) -> list[str]:
    """The texts for an encoder: the readable text, then with ever more disguises undone.

    Ordinary texts have one reading.
    """
    current = readable(text)
    texts = [current]
    for depth in range(DEPTH):
        runs = encoded_runs(current)
        is_sentence = sum(edit.text == " " for _, edit in runs) >= _FEWEST_SPACES
        edits = [
            edit
            for codec, edit in runs
            if depth or is_sentence or codec not in _OF_ADDRESSES or _is_disguise(current, edit)
        ]
        if not edits or len(current) > _MOST_GROWTH * len(text):
            break
        current = readable(Rewritten(current, edits).text)
        texts.append(current)
    joined = [Rewritten(current, edits).text for undo in _WARY_APART if (edits := undo(current))]
    texts += joined
    current = joined[-1] if joined else current
    for undo in _WARY:
        if edits := undo(current):
            current = Rewritten(current, edits).text
            texts.append(current)
    return list(dict.fromkeys(texts))


def _is_disguise(text: str, edit: Replacement) -> bool:
    """An address has spaces and signs escaped; escaped letters, or escapes, are a disguise."""
    return bool(
        _DISGUISED.search(edit.text.replace("\\", ""))
        or (edit.end - edit.start > 2 and "\\" in edit.text)
        or text[edit.start] == "="
    )


def _undone(view: View, step: str, undo: _Undo) -> View | None:
    edits = undo(view.text)
    if not edits:
        return None
    rewritten = Rewritten(view.text, edits)
    return View(_name(view.name, step), rewritten.text, through(view.span, rewritten.span))


def _name(before: str, *steps: str) -> str:
    return "+".join(steps if before == PLAIN else (before, *steps))


def through(outer: Span, *inner: Span) -> Span:
    """The positions in a source of positions in a text that was made of it in several steps."""

    def span(start: int, end: int) -> tuple[int, int]:
        for step in reversed(inner):
            start, end = step(start, end)
        return outer(start, end)

    return span
