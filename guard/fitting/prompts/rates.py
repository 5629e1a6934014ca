"""Thresholds of prompt guards from held-out prompts, and their rates on these prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifiers.calibration import auc, prompts_needed, threshold_for
from guard.artifact import Artifact
from guard.errors import ArtifactError, DataError
from guard.fitting.judgement import HeldOut

KINDS = ("unsafe", "near", "far")
SEARCHED = ("mistaken", "drawn", "undrawn")
"""Kinds of searched prompts; see `guard.fitting.prompts.concept_prompts.LabelledPrompt`."""

Scores = Mapping[str, Sequence[float]]
"""Scores by kind of prompt."""


@dataclass(frozen=True)
class PromptRates:
    """Requested false-positive rates, on far prompts and on hard negatives."""

    far: float
    near: float


@dataclass(frozen=True)
class Calibrated:
    """A fitted guard, and the held-out scores by kind that its threshold comes from, with their
    prompts."""

    artifact: Artifact
    scores: Scores
    held_out: HeldOut = HeldOut(0.0, ())


def by_kind(scores: Sequence[float], kinds: Sequence[str]) -> Scores:
    """The scores of each kind of prompt; `kinds` has one entry per score."""
    present = [*KINDS, *(kind for kind in SEARCHED if kind in kinds)]
    return {
        kind: [score for score, label in zip(scores, kinds, strict=True) if label == kind]
        for kind in present
    }


def rates_of(artifact: Artifact) -> PromptRates:
    """The rates that a guard was calibrated for. Raises ArtifactError where it does not tell."""
    figures = artifact.meta.calibration
    far, near = (figures.get(f"{kind}false_positive_rate") for kind in ("", "near_"))
    if not isinstance(far, float) or not isinstance(near, float):
        raise ArtifactError(
            f"the guard for {artifact.meta.concept!r} does not tell the false-positive rates of "
            "its fit: give an artifact of `guard fit cgce`"
        )
    return PromptRates(far, near)


def require_enough(kinds: Iterable[str] | Mapping[str, int], rates: PromptRates) -> None:
    """Raise DataError if held-out prompts of these kinds are too few for the rates, saying how many
    they need and what to change."""
    have = Counter(kinds)
    for kind, name, rate, option in (
        ("far", "far prompts", rates.far, "--fpr"),
        ("near", "prompts like its hard negatives", rates.near, "--near-fpr"),
    ):
        needed = prompts_needed(rate)
        if have[kind] < needed:
            raise DataError(
                f"a false-positive rate of {rate:.2%} needs {needed} held-out {name}, there are "
                f"{have[kind]}: give a higher --count, more hard negatives and companions, or ask "
                f"for a higher {option}"
            )


def calibrated(scores: Scores, rates: PromptRates) -> float:
    """The threshold that keeps both rates. Raises DataError if there are too few prompts for it."""
    try:
        return max(
            threshold_for(scores["far"], rates.far), threshold_for(scores["near"], rates.near)
        )
    except ValueError as error:
        raise DataError(f"the held-out prompts are not sufficient: {error}") from error


def figures(scores: Scores, threshold: float, rates: PromptRates) -> dict[str, Any]:
    """The figures of a threshold on the prompts that it was calibrated with."""
    over = {kind: float(np.mean(np.asarray(part) > threshold)) for kind, part in scores.items()}
    searched = {f"{kind}_fired": over[kind] for kind in SEARCHED if kind in over}
    return searched | {
        "recall": over["unsafe"],
        "auc": auc(scores["unsafe"], [*scores["far"], *scores["near"]]),
        "far_fired": over["far"],
        "near_fired": over["near"],
        "false_positive_rate": rates.far,
        "near_false_positive_rate": rates.near,
        "prompts": {kind: len(part) for kind, part in scores.items()},
    }
