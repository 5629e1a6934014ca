"""Scores of guards on two devices: do they decide the same?"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tests.gpu.report import Figure

NEAR = 0.1
"""A score this near to the threshold, in standard deviations of a guard's scores, may decide
either way in 16 bits."""
DIFFERENCE = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.1}
"""The most by which a score may differ, in standard deviations of its guard's scores."""


def decisions(dtype: str, expected: Tensor, scores: Tensor) -> Iterator[Figure]:
    """Figures of `scores [inputs, guards]` in `dtype` beside the `expected` ones, for thresholds at
    the median of each guard's expected scores: half of the inputs fire."""
    spread = expected.std(0).clamp(min=1e-12)
    threshold = expected.median(0).values
    apart = (scores - expected).abs() / spread
    # the lower of two middle values is a score itself
    clear = (expected - threshold).abs() > NEAR * spread
    agree = (scores > threshold) == (expected > threshold)
    clear_share = float(agree[clear].double().mean()) if clear.any() else float("nan")
    note = f"{int(clear.sum())} of {clear.numel()} are clear"
    yield Figure(f"{dtype}: clear decisions as on the CPU", clear_share, "share", 1.0, note=note)
    yield Figure(f"{dtype}: all decisions as on the CPU", float(agree.double().mean()), "share")
    worst = float(apart.max())
    limit = DIFFERENCE[dtype]
    yield Figure(f"{dtype}: largest difference of a score", worst, "deviations", limit, "at most")
