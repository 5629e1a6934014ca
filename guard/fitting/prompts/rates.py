"""Thresholds of prompt guards on held-out prompts, and what they come to there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifiers.calibration import auc, threshold_for
from guard.artifact import Artifact
from guard.errors import DataError

KINDS = ("unsafe", "near", "far")
SEARCHED = ("mistaken", "drawn", "undrawn")
"""Kinds that only a search finds; see `guard.fitting.prompts.concept_prompts.LabelledPrompt`."""

Scores = Mapping[str, Sequence[float]]
"""Scores by kind of prompt."""


@dataclass(frozen=True)
class Calibrated:
    """A fitted guard with what gave its threshold: held-out scores by kind."""

    artifact: Artifact
    scores: Scores


def by_kind(scores: Sequence[float], kinds: Sequence[str]) -> Scores:
    """The scores of prompts that are of these kinds."""
    there = [*KINDS, *(kind for kind in SEARCHED if kind in kinds)]
    return {
        kind: [score for score, own in zip(scores, kinds, strict=True) if own == kind]
        for kind in there
    }


def calibrated(scores: Scores, fpr: float, near_fpr: float) -> float:
    """The threshold that keeps both rates. Raises DataError where the prompts do not do for it."""
    try:
        return max(threshold_for(scores["far"], fpr), threshold_for(scores["near"], near_fpr))
    except ValueError as error:
        raise DataError(f"the held-out prompts do not do: {error}") from error


def figures(scores: Scores, threshold: float, fpr: float, near_fpr: float) -> dict[str, Any]:
    """What the threshold comes to on the prompts that it was chosen by."""
    over = {kind: float(np.mean(np.asarray(own) > threshold)) for kind, own in scores.items()}
    searched = {f"{kind}_fired": over[kind] for kind in SEARCHED if kind in over}
    return searched | {
        "recall": over["unsafe"],
        "auc": auc(scores["unsafe"], [*scores["far"], *scores["near"]]),
        "far_fired": over["far"],
        "near_fired": over["near"],
        "false_positive_rate": fpr,
        "near_false_positive_rate": near_fpr,
        "prompts": {kind: len(own) for kind, own in scores.items()},
    }
