"""What rounds of a benchmark come to: medians, and ratios within each round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def told(seconds: Sequence[float], ratios: Sequence[float]) -> dict[str, Any]:
    """Medians of both, and the quartiles of the ratios."""
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "seconds": statistics.median(seconds),
        "ratio": statistics.median(ratios),
        "quartiles": [low, high],
    }


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """`over / under`, round by round."""
    return [one / other for one, other in zip(over, under, strict=True)]
