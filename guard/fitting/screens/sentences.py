"""How a screen reads single sentences: its head for them, and what they may add to its rate.

A text of many sentences fires if one of them does, so that the threshold of sentences comes from
benign texts put together: draws of texts of one source, and of all, of 40 to 400 tokens. What they
score is the highest that any of their sentences scores in the head that has not learnt from it; of
each source, and of all, at most RATE times the rate of single texts may fire. Beside that, of the
texts of a source that have several sentences, no more than that rate may fire by a sentence alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifiers.calibration import prompts_needed, threshold_for
from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads, Flags, Floats
from classifiers.embeddings.training import train_sentence
from guard.fitting.screens.cross_fit import CrossFit, HeadRecipe
from guard.fitting.screens.folds import FOLDS, Example, Indices
from guard.fitting.screens.windows import TextWindows

RATE = 2.0
"""How often a text of many sentences may fire, in multiples of the rate of single texts."""
LENGTHS = (40, 150, 400)
"""Tokens of benign texts that are put together."""
DRAWN = 900
"""Texts that are put together of each source."""


@dataclass(frozen=True, slots=True)
class SentenceFit:
    """`sentence` is the head for single sentences, with a bias by which the threshold holds for it,
    None where too few benign texts are short enough to be put together; `logits [windows]` are
    those of sentences by what has not learnt from them, -infinity for others. `figures` are for
    the artifact and the report."""

    sentence: EmbeddingHead | None
    logits: Floats
    figures: Mapping[str, Any]


def fit_sentences(
    examples: Sequence[Example],
    windows: TextWindows,
    folds: Indices,
    fitted: CrossFit,
    recipe: HeadRecipe,
    learn_only: Sequence[str],
) -> SentenceFit:
    """What the fitted head needs to read single sentences; `folds` and `recipe` are those of its
    fit."""
    fpr = recipe.fpr
    unsafe = np.array([example.unsafe for example in examples])
    train = np.flatnonzero(folds >= 0)
    fold_of = folds[windows.text]

    def trained(texts: Indices) -> EmbeddingHead:
        rows = windows.rows_of(texts)
        rows = rows[~(windows.sentence & unsafe[windows.text])[rows]]
        text, sentence = windows.text[rows], windows.sentence[rows]
        weights = 1 / np.bincount(text[~sentence], minlength=len(examples))[text]
        weights[sentence] = 1
        return train_sentence(
            recipe.kind, windows.embeddings[rows], unsafe[text], sentence, weights, recipe.seed
        )

    logits = np.empty(len(windows.text), np.float32)
    final = trained(train)
    for fold in (*range(FOLDS), -1):
        head = final if fold < 0 else trained(train[folds[train] != fold])
        rows = fold_of == fold
        logits[rows] = EmbeddingHeads([head]).logits(windows.embeddings[rows])[:, 0]
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
    rate = min(RATE * fpr, 0.5)
    drawn = [
        _drawn(group, windows, folds, by_itself, fpr, recipe.seed)
        for group in (*enough.values(), everything)
    ]
    sufficient = [scores for scores in drawn if len(scores) >= prompts_needed(rate)]
    if not sufficient:
        silent = np.full(len(windows.text), -np.inf, np.float32)
        return SentenceFit(None, silent, {"joined_texts": sum(map(len, drawn))})
    border = max(threshold_for(scores, rate) for scores in sufficient)
    border = max(border, _spared([*enough.values()], folds, fitted, in_text, fpr))
    usable = np.isfinite(by_itself)
    fires = usable & (by_itself > border)
    shift = fitted.border - border
    beside = {
        "cross_fit": unsafe & usable & (folds >= 0),
        "held_out": unsafe & usable & (folds < 0),
    }
    return SentenceFit(
        final.with_bias(shift),
        np.where(windows.sentence, logits + shift, -np.inf).astype(np.float32),
        {
            "rate_of_joined_texts": rate,
            "recall_beside_other_text": {
                name: {"count": int(fires[rows].sum()), "total": int(rows.sum())}
                for name, rows in beside.items()
            },
        },
    )


def _drawn(
    of_group: Flags,
    windows: TextWindows,
    folds: Indices,
    scores: Floats,
    fpr: float,
    seed: int,
) -> list[float]:
    """The scores of benign texts put together, of a group `[texts]`; the parts of one are of one
    fold."""
    generator = np.random.default_rng(seed)
    tokens = windows.tokens
    usable = of_group & windows.read_once & np.isfinite(scores) & (tokens > 0)
    pools = {
        (length, fold): np.flatnonzero(usable & (tokens <= length) & (folds == fold))
        for length in LENGTHS
        for fold in range(FOLDS)
    }
    found: list[float] = []
    for number in range(max(DRAWN, 3 * prompts_needed(fpr))):
        length = LENGTHS[number % len(LENGTHS)]
        pool = pools[length, number % FOLDS]
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
