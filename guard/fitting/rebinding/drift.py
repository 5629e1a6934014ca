"""How far a gate's scores are from those on the model of its fit, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Scores = Mapping[str, Sequence[float]]
"""Scores of prompts by their kind: forget, far, near."""

_QUANTILES = (0.05, 0.5, 0.95)


def fired(scores: Scores, threshold: float) -> dict[str, float]:
    """The share of prompts of each kind that fire."""
    return {kind: float((np.asarray(values) > threshold).mean()) for kind, values in scores.items()}


def quantiles(scores: Scores) -> dict[str, list[float]]:
    """The 5 %, 50 % and 95 % quantiles of each kind."""
    return {
        kind: [round(float(q), 5) for q in np.quantile(np.asarray(values), _QUANTILES)]
        for kind, values in scores.items()
    }


def paired(before: Scores, after: Scores, threshold: float) -> dict[str, dict[str, Any]]:
    """Of each kind the changes of the same prompts' scores: mean, the 95 % quantile of their sizes,
    and how many prompts begin or cease to fire at `threshold`."""
    found = {}
    for kind, values in before.items():
        old, new = np.asarray(values), np.asarray(after[kind])
        change = new - old
        found[kind] = {
            "prompts": len(old),
            "mean_change": round(float(change.mean()), 5),
            "size_of_95_percent": round(float(np.quantile(np.abs(change), 0.95)), 5),
            "begin_to_fire": int(((old <= threshold) & (new > threshold)).sum()),
            "cease_to_fire": int(((old > threshold) & (new <= threshold)).sum()),
        }
    return found
