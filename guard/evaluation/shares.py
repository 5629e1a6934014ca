"""Counted shares with the uncertainty that comes with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest  # type: ignore[import-untyped]

DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Share:
    """`count` of `total`, with its 95 % Wilson interval."""

    count: int
    total: int

    @property
    def value(self) -> float:
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.total:
            return math.nan, math.nan
        low, high = binomtest(self.count, self.total).proportion_ci(0.95, method="wilson")
        return float(low), float(high)

    @classmethod
    def of(cls, flags: Sequence[bool]) -> Share:
        return cls(sum(flags), len(flags))

    def __str__(self) -> str:
        if not self.total:
            return "-"
        low, high = self.interval
        return f"{self.value:.1%} ({self.count}/{self.total}; {low:.1%} to {high:.1%})"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure made of several shares, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


Samples = Mapping[str, NDArray[np.float64]]
"""By name, one column for each sample of that name: `[quantities, samples]`."""


def bootstrap(samples: Samples, figure: Callable[[Samples], float], seed: int = 0) -> Estimate:
    """`figure` of `samples`, with the percentile interval of DRAWS resamplings (Efron 1979).

    The columns of each name are drawn with replacement, all quantities of a column together, so
    that what was measured on the same prompt and seed stays paired.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        again = {
            name: values[:, rng.integers(values.shape[1], size=values.shape[1])]
            for name, values in samples.items()
        }
        drawn.append(figure(again))
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return Estimate(figure(samples), float(low), float(high))
