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

Means = Mapping[str, NDArray[np.float64]]
"""By name the mean of each quantity, `[quantities, ...]`; one column a resampling."""


def bootstrap(
    samples: Samples, figure: Callable[[Means], NDArray[np.float64]], seed: int = 0
) -> Estimate:
    """`figure` of the means of `samples`, with the percentile interval of DRAWS resamplings.

    After Efron 1979. The columns of each name are drawn with replacement, all quantities of a
    column together, so that what was measured on the same prompt and seed stays paired.
    """
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, values in samples.items():
        count = values.shape[1]
        # how often each sample is drawn is all that a mean needs
        times = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS)
        drawn[name] = values @ times.T / count
    low, high = np.nanpercentile(figure(drawn), (2.5, 97.5))
    value = figure({name: values.mean(1) for name, values in samples.items()})
    return Estimate(float(value), float(low), float(high))
