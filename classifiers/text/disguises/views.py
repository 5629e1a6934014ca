"""The ways in which a text can be read once the usual disguises are undone.

`views` are for patterns: folded, and each with the way back to the raw text. `readings` are for an
encoder: few, since each costs a pass, and one alone for an ordinary text. Disguises that are
commonly stacked are undone one on another: what is encoded may be encoded again, up to `DEPTH`
times, and what comes out may be spelled apart and in leet.

All of it is linear in the length of the text. Decoding only ever shortens it, so that all that is
decoded is at most twice as long as the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from classifiers.text.disguises.decoding import encoded_runs
from classifiers.text.disguises.folding import fold, readable, uncover
from classifiers.text.disguises.respelling import backwards, leet, letters_apart, rot13
from classifiers.text.disguises.rewriting import Replacement, Rewritten

PLAIN: Final = "plain"
STEPS: Final = frozenset(
    {PLAIN, "base64", "hex", "url", "escape", "spaced", "leet", "rot13", "reversed"}
)
"""What can be undone; the name of a view lists what was, in order: "base64+leet"."""
DEPTH: Final = 3

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


_TELLING: Final = re.compile(r"[^\W\d_]|[%&\\]")


@dataclass(frozen=True, slots=True)
class View:
    """One reading of a raw text; `span(start, end)` gives where text[start:end] stands in it.

    Of a run that was decoded the span is the whole run.
    """

    name: str
    text: str
    span: Span

    @property
    def steps(self) -> frozenset[str]:
        """What was undone, or "plain"."""
        return frozenset(self.name.split("+"))


def layers(text: str, wanted: Container[str] = STEPS) -> Iterator[View]:
    """The text with its case kept and lookalikes settled, then with what is encoded decoded.

    Each layer undoes what the one before it still held, of the `wanted` steps.
    """
    uncovered = uncover(text)
    layer = View(PLAIN, uncovered.text, uncovered.span)
    yield layer
    for _ in range(DEPTH):
        runs = [run for run in encoded_runs(layer.text) if run[0] in wanted]
        if not runs:
            return
        used = list(dict.fromkeys(codec for codec, _ in runs))
        rewritten = Rewritten(layer.text, [edit for _, edit in runs])
        uncovered = uncover(rewritten.text)
        span = _through(layer.span, rewritten.span, uncovered.span)
        layer = View(_name(layer.name, *used), uncovered.text, span)
        yield layer


def views(text: str) -> list[View]:
    """The folded text, named "plain", and each other reading that differs from those before it."""
    return folded_views(layers(text))


def folded_views(of_layers: Iterable[View], wanted: Container[str] = STEPS) -> list[View]:
    """The views of a text that is given as its `layers`, with the `wanted` steps alone."""
    found: dict[str, View] = {}
    for layer in of_layers:
        folded = fold(layer.text)
        base = View(layer.name, folded.text, _through(layer.span, folded.span))
        spaced = [_undone(base, "spaced", undo) for undo in _APART if "spaced" in wanted]
        for view in (base, *spaced):
            if view is not None and view.text not in found:
                found[view.text] = view
                for step, undo in _RESPELLED:
                    respelled = _undone(view, step, undo) if step in wanted else None
                    if respelled is not None:
                        found.setdefault(respelled.text, respelled)
    return list(found.values())


def readings(text: str) -> list[str]:
    """What an encoder should be shown: the readable text, then with ever more disguises undone.

    Ordinary texts have one reading.
    """
    current = readable(text)
    found = [current]
    for _ in range(DEPTH):
        # An address has spaces and signs escaped; who escapes letters, or escapes, hides them.
        edits = [edit for _, edit in encoded_runs(current) if _TELLING.search(edit.text)]
        if not edits:
            break
        current = readable(Rewritten(current, edits).text)
        found.append(current)
    apart = [Rewritten(current, edits).text for undo in _WARY_APART if (edits := undo(current))]
    found += apart
    current = apart[-1] if apart else current
    for undo in _WARY:
        if edits := undo(current):
            current = Rewritten(current, edits).text
            found.append(current)
    return list(dict.fromkeys(found))


def _undone(view: View, step: str, undo: _Undo) -> View | None:
    edits = undo(view.text)
    if not edits:
        return None
    rewritten = Rewritten(view.text, edits)
    return View(_name(view.name, step), rewritten.text, _through(view.span, rewritten.span))


def _name(before: str, *steps: str) -> str:
    return "+".join(steps if before == PLAIN else (before, *steps))


def _through(outer: Span, *inner: Span) -> Span:
    def span(start: int, end: int) -> tuple[int, int]:
        for step in reversed(inner):
            start, end = step(start, end)
        return outer(start, end)

    return span
