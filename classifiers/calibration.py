"""Thresholds with a stated false-positive rate, from scores on held-out negatives.

Split conformal prediction (Vovk et al. 2005; Angelopoulos and Bates 2021, section 1): with `n`
exchangeable held-out scores, the ceil((n + 1)(1 - α))-th smallest is exceeded by a fresh negative
with probability at most α.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def prompts_needed(rate: float) -> int:
    """The fewest held-out negatives for a rate; with fewer, no finite threshold keeps it.

    Raises ValueError unless the rate is between 0 and 1.
    """
    if not 0.0 < rate < 1.0:
        raise ValueError(f"a false-positive rate must be between 0 and 1, not {rate}")
    return math.ceil(round(1.0 / rate - 1.0, 9))


def threshold_for(scores: Sequence[float], rate: float) -> float:
    """The threshold that fresh negatives exceed with probability at most `rate`.

    Raises ValueError for too few `scores`, with the number that the rate needs, and for scores that
    are NaN or infinite.
    """
    needed = prompts_needed(rate)
    if len(scores) < needed:
        raise ValueError(
            f"a false-positive rate of {rate:.2%} needs {needed} held-out retain prompts, "
            f"there are {len(scores)}"
        )
    if not all(map(math.isfinite, scores)):
        raise ValueError("a held-out score is not a number: the model's activations are at fault")
    rank = math.ceil(round((len(scores) + 1) * (1.0 - rate), 9))
    return float(np.sort(np.asarray(scores, dtype=np.float64))[rank - 1])


def auc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """The share of pairs in which the positive scores higher, ties as half; NaN without pairs."""
    if not len(positives) or not len(negatives):
        return math.nan
    gap = np.asarray(positives)[:, None] - np.asarray(negatives)[None]
    return float((gap > 0).mean() + 0.5 * (gap == 0).mean())
