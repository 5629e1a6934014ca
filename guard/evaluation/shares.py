"""Counted shares, and estimates from them, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLINGS = 2000


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
        return self._bounds("two-sided", "wilson")

    @property
    def at_most(self) -> float:
        """The one-sided 95 % bound from above of Clopper and Pearson, 1934; 1 of nothing."""
        if not self.total:
            return 1.0
        return self._bounds("less", "exact")[1]

    @property
    def at_least(self) -> float:
        """The same bound from below; 0 of nothing."""
        if not self.total:
            return 0.0
        return self._bounds("greater", "exact")[0]

    def _bounds(self, alternative: str, method: str) -> tuple[float, float]:
        # of the extra for fits; a server that only knows of shares has none
        from scipy.stats import binomtest

        test = binomtest(self.count, self.total, alternative=alternative)
        low, high = test.proportion_ci(0.95, method=method)
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
    """A figure computed from several shares, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


Samples = Mapping[str, NDArray[np.float64]]
"""Samples by name, one column each: `[quantities, samples]`."""

Means = Mapping[str, NDArray[np.float64]]
"""The mean of each quantity by name, `[quantities, ...]`; one column per resampling."""


def bootstrap(
    samples: Samples, figure: Callable[[Means], NDArray[np.float64]], seed: int = 0
) -> Estimate:
    """`figure` of the means of `samples`, with the percentile interval of RESAMPLINGS.

    After Efron 1979. The columns of each name are sampled with replacement, all quantities of a
    column together, so that measurements on the same prompt and seed stay paired.
    """
    rng = np.random.default_rng(seed)
    means = {}
    for name, values in samples.items():
        count = values.shape[1]
        # a mean needs only how often each sample is used
        times = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLINGS)
        means[name] = values @ times.T / count
    low, high = np.nanpercentile(figure(means), (2.5, 97.5))
    value = figure({name: values.mean(1) for name, values in samples.items()})
    return Estimate(float(value), float(low), float(high))
