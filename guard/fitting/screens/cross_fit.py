"""A head on embeddings, its probabilities and its threshold, by cross-conformal prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from classifiers.embeddings.heads import EmbeddingHead, Floats, Kind
from classifiers.embeddings.training import Calibration, calibrated
from guard.fitting.screens.folds import FOLDS, Example, Indices, threshold_on


@dataclass(frozen=True, slots=True)
class HeadRecipe:
    """Settings of the fit of a head: its kind, how its logits become probabilities, the
    false-positive rate on each benign source, and the seed of the folds and of the head."""

    kind: Kind = "logistic"
    calibration: Calibration = "temperature"
    fpr: float = 0.01
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class CrossFit:
    """A head that learned from all examples of a fold, and its threshold; `border` is the
    threshold's logit. `of_folds` are the heads that each did not learn from one fold.

    `logits` and `scores`, `[examples]`, are by the head that did not learn from the example, NaN
    for held-out ones; `usable` are the indices of those that are finite.
    """

    head: EmbeddingHead
    threshold: float
    border: float
    logits: Floats
    scores: Floats
    usable: Indices
    of_folds: tuple[EmbeddingHead, ...]


def cross_fit(
    examples: Sequence[Example],
    folds: Indices,
    trained: Callable[[Indices], EmbeddingHead],
    logits_of: Callable[[EmbeddingHead], Floats],
    calibration: Calibration,
    fpr: float,
    advance: Callable[[int], object],
    learn_only: Sequence[str] = (),
) -> CrossFit:
    """Fit on the examples whose fold is not -1. `trained` makes a head of the examples with these
    indices, `logits_of` gives its logits of all; `advance(1)` is called after each of FOLDS + 1
    heads. Sources in `learn_only` set no threshold.

    Raises ValueError and DataError where there are too few examples.
    """
    unsafe = np.array([example.unsafe for example in examples])
    train = np.flatnonzero(folds >= 0)
    logits = np.full(len(examples), np.nan, np.float32)
    of_folds = []
    for fold in range(FOLDS):
        fold_head = trained(train[folds[train] != fold])
        of_folds.append(fold_head)
        logits[folds == fold] = logits_of(fold_head)[folds == fold]
        advance(1)
    head = trained(train)
    usable = train[np.isfinite(logits[train])]
    head = calibrated(head, logits[usable], unsafe[usable], calibration)
    advance(1)
    scores = head.probabilities(logits)
    threshold = threshold_on(examples, scores, usable, fpr, learn_only)
    border = threshold_on(examples, logits, usable, fpr, learn_only)
    return CrossFit(head, threshold, border, logits, scores, usable, tuple(of_folds))
