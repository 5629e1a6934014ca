"""Summaries of a benchmark's rounds: medians, and ratios within each round."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def shuffled_rounds(sides: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Every side once a round, in a new order each round: (number of the round, side).

    Round 0 comes first and is a warm-up; `rounds` follow it. The order is the same in every run.
    """
    order = random.Random(0)
    for number in range(rounds + 1):
        for side in order.sample(sides, len(sides)):
            yield number, side


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """`numerators / denominators`, round by round."""
    return [over / under for over, under in zip(numerators, denominators, strict=True)]


def timed_rounds(
    runs: Mapping[str, Callable[[], object]], rounds: int, base: str
) -> dict[str, dict[str, Any]]:
    """Run each of `runs` once a round: the `summary` of its seconds, with the ratios of those of
    `base` to its own: throughput relative to `base`."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number, name in shuffled_rounds(list(runs), rounds):
        began = time.perf_counter()
        runs[name]()
        if number:
            seconds[name].append(time.perf_counter() - began)
    return {name: summary(taken, ratios(seconds[base], taken)) for name, taken in seconds.items()}


def summary(seconds: Sequence[float], ratios: Sequence[float]) -> dict[str, Any]:
    """Medians of both, and the quartiles of the ratios; two rounds at least."""
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "seconds": statistics.median(seconds),
        "ratio": statistics.median(ratios),
        "quartiles": [low, high],
    }
