"""How a screen reads single sentences: its direction for them, and what they may add to its rate.

A text of many sentences fires if one of them does, so that the threshold of sentences comes from
benign texts put together: draws of texts of one source, and of all, of 40 to 400 tokens. What they
score is the highest that any of their sentences scores in the head that has not learnt from it; at
most RATE times the rate of single texts may fire. Beside that, of the texts of a source that have
several sentences, no more than that rate may fire by a sentence alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifiers.calibration import prompts_needed, threshold_for
from classifiers.embeddings.heads import Flags, Floats
from classifiers.embeddings.training import train_sentence
from guard.fitting.screens.cross_fit import CrossFit
from guard.fitting.screens.folds import FOLDS, Example, Indices
from guard.fitting.screens.windows import TextWindows

RATE = 2.0
"""How often a text of many sentences may fire, in multiples of the rate of single texts."""
LENGTHS = (40, 150, 400)
"""Tokens of benign texts that are put together."""
DRAWN = 300
"""Texts that are put together of each source."""


@dataclass(frozen=True, slots=True)
class SentenceFit:
    """`sentence [width + 1]` is for the head, with a bias by which its threshold holds, None where
    too few benign texts are short enough to be put together; `logits
    [texts]` are the highest of each text's sentences, by what has not learnt from it. `figures` are
    for the artifact and the report."""

    sentence: Floats | None
    logits: Floats
    figures: Mapping[str, Any]


def fit_sentences(
    examples: Sequence[Example],
    windows: TextWindows,
    folds: Indices,
    fitted: CrossFit,
    fpr: float,
    learn_only: Sequence[str],
    seed: int,
) -> SentenceFit:
    """What the fitted head needs to read single sentences; `folds` are those of its fit."""
    unsafe = np.array([example.unsafe for example in examples])
    train = np.flatnonzero(folds >= 0)
    fold_of = folds[windows.text]

    def trained(texts: Indices) -> Floats:
        rows = windows.rows_of(texts)
        rows = rows[~(windows.sentence & unsafe[windows.text])[rows]]
        text, sentence = windows.text[rows], windows.sentence[rows]
        weights = 1 / np.bincount(text[~sentence], minlength=len(examples))[text]
        weights[sentence] = 1
        return train_sentence(windows.embeddings[rows], unsafe[text], sentence, weights)

    logits = np.empty(len(windows.text), np.float32)
    final = trained(train)
    for fold in (*range(FOLDS), -1):
        direction = final if fold < 0 else trained(train[folds[train] != fold])
        rows = fold_of == fold
        logits[rows] = windows.embeddings[rows] @ direction[:-1] + direction[-1]
    by_itself = windows.highest(np.where(windows.by_itself, logits, -np.inf).astype(np.float32))
    in_text = windows.highest(np.where(windows.sentence, logits, -np.inf).astype(np.float32))
    benign = [
        name
        for name in dict.fromkeys(row.source for row in examples if not row.unsafe)
        if name not in learn_only
    ]
    of_source = {
        name: np.array([row.source == name and not row.unsafe for row in examples])
        for name in benign
    }
    enough = {name: rows for name, rows in of_source.items() if rows.sum() >= prompts_needed(fpr)}
    everything = np.any([*of_source.values()], axis=0)
    drawn = _drawn([*enough.values(), everything], windows, folds, by_itself, fpr, seed)
    rate = min(RATE * fpr, 0.5)
    if len(drawn) < prompts_needed(rate):
        silent = np.full(len(examples), -np.inf, np.float32)
        return SentenceFit(None, silent, {"joined_texts": len(drawn)})
    border = threshold_for(drawn, rate)
    border = max(border, _spared([*enough.values()], folds, fitted, in_text, fpr))
    usable = np.isfinite(by_itself)
    fires = usable & (by_itself > border)
    shifted = final.copy()
    shift = fitted.border - border
    shifted[-1] += shift
    beside = {
        "cross_fit": unsafe & usable & (folds >= 0),
        "held_out": unsafe & usable & (folds < 0),
    }
    return SentenceFit(
        shifted,
        (in_text + shift).astype(np.float32),
        {
            "rate_of_joined_texts": rate,
            "recall_beside_other_text": {
                name: {"count": int(fires[rows].sum()), "total": int(rows.sum())}
                for name, rows in beside.items()
            },
        },
    )


def _drawn(
    groups: Sequence[Flags],
    windows: TextWindows,
    folds: Indices,
    scores: Floats,
    fpr: float,
    seed: int,
) -> list[float]:
    """The scores of benign texts put together, as many of each group, `[texts]`; the parts of one
    are of one fold."""
    generator = np.random.default_rng(seed)
    tokens = windows.tokens
    usable = windows.read_once & np.isfinite(scores) & (tokens > 0)
    found: list[float] = []
    for of_group in groups:
        for number in range(max(DRAWN, 3 * prompts_needed(fpr))):
            length = LENGTHS[number % len(LENGTHS)]
            fits = usable & (tokens <= length) & (folds == number % FOLDS)
            pool = np.flatnonzero(of_group & fits)
            if not len(pool):
                continue
            parts = generator.choice(pool, length)
            needed = np.searchsorted(np.cumsum(tokens[parts]), length) + 1
            found.append(float(scores[parts[:needed]].max()))
    return found


def _spared(
    groups: Sequence[Flags], folds: Indices, fitted: CrossFit, in_text: Floats, fpr: float
) -> float:
    """The lowest border of sentences at which, in each group `[texts]`, so few texts fire that are
    silent as a whole."""
    borders = [-np.inf]
    for of_group in groups:
        silent = fitted.logits <= fitted.border
        texts = np.flatnonzero(of_group & (folds >= 0) & silent & np.isfinite(in_text))
        if len(texts) >= prompts_needed(fpr):
            borders.append(threshold_for(in_text[texts].tolist(), fpr))
    return max(borders)
