"""The parts of labelled examples, texts or images, and the threshold of a screen on benign ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from classifiers.calibration import prompts_needed, threshold_for
from classifiers.embeddings.heads import Floats
from guard.errors import DataError

FOLDS = 5

Indices = NDArray[np.intp]


class Example(Protocol):
    """A text or an image; `source` is its collection, examples of one `family` are variants."""

    @property
    def unsafe(self) -> bool: ...

    @property
    def source(self) -> str: ...

    @property
    def family(self) -> str | None: ...


def folds_of(examples: Sequence[Example], hold_out: Sequence[str], seed: int) -> Indices:
    """The fold of each example, -1 for held-out ones; all examples of a family are in one fold.

    Raises DataError where a source in `hold_out` is unknown.
    """
    _require_known(examples, hold_out)
    families: dict[tuple[str, bool, str], list[int]] = {}
    for index, example in enumerate(examples):
        if example.source not in hold_out:
            key = (example.source, example.unsafe, example.family or f"row {index}")
            families.setdefault(key, []).append(index)
    generator = np.random.default_rng(seed)
    order = sorted(families, key=lambda key: (key[:2], generator.random()))
    folds = np.full(len(examples), -1, np.intp)
    for number, key in enumerate(order):
        folds[families[key]] = number % FOLDS
    return folds


def require_enough(
    examples: Sequence[Example],
    folds: Indices,
    fpr: float,
    what: str,
    learn_only: Sequence[str] = (),
) -> None:
    """Raise DataError if the examples to train and to calibrate on are too few, or a source in
    `learn_only`, on which nothing is calibrated, is unknown; `what` are they called ("texts")."""
    _require_known(examples, learn_only)
    unsafe = np.array([example.unsafe for example in examples])
    for kind, of_kind in (("unsafe", unsafe), ("benign", ~unsafe)):
        if len(np.unique(folds[of_kind & (folds >= 0)])) < 2:
            raise DataError(
                f"too few {kind} {what} to train on: give some of two families or more, that are "
                "not of a source that is held out"
            )
    calibrating = np.array([example.source not in learn_only for example in examples]) & ~unsafe
    benign, needed = int((calibrating & (folds >= 0)).sum()), prompts_needed(fpr)
    if benign < needed:
        raise DataError(
            f"a false-positive rate of {fpr:.2%} needs {needed} benign {what} that are not "
            f"held out, there are {benign}: add some, or ask for a higher --fpr"
        )


def _require_known(examples: Sequence[Example], named: Sequence[str]) -> None:
    sources = {example.source for example in examples}
    if unknown := sorted({*named} - sources):
        raise DataError(
            f"nothing is of the source {unknown[0]!r}: there are {', '.join(sorted(sources))}"
        )


def threshold_on(
    examples: Sequence[Example],
    scores: Floats,
    calibrating: Indices,
    fpr: float,
    learn_only: Sequence[str] = (),
) -> float:
    """The threshold that keeps the rate on each benign source with enough examples that is not in
    `learn_only`. Raises DataError where there are too few."""
    benign: dict[str, list[float]] = {}
    for index in calibrating:
        if not examples[index].unsafe and examples[index].source not in learn_only:
            benign.setdefault(examples[index].source, []).append(float(scores[index]))
    enough = [group for group in benign.values() if len(group) >= prompts_needed(fpr)]
    few = [score for group in benign.values() if group not in enough for score in group]
    groups = [*enough, few] if len(few) >= prompts_needed(fpr) or not enough else enough
    try:
        return max(threshold_for(group, fpr) for group in groups)
    except ValueError as error:
        raise DataError(f"benign examples to calibrate on: {error}") from error
