"""The values that settings of fitted guards may have, without torch: a proxy has none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Finite numbers from `least` to `most`; `above` leaves `least` out, `whole` takes only whole
    numbers. A setting that is a list is checked number by number."""

    least: float
    most: float
    above: bool = False
    whole: bool = False

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence; None where nothing is."""
        if isinstance(value, list | tuple):
            return next((fault for item in value if (fault := self.fault(item))), None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"must be a finite number, not {value!r}"
        if not math.isfinite(value):
            return f"must be a finite number, not {value!r}"
        if not self.least <= value <= self.most or (self.above and value == self.least):
            least = f"above {self.least:g} and at most" if self.above else f"{self.least:g} to"
            return f"must be {least} {self.most:g}, not {value!r}"
        if self.whole and value != int(value):
            return f"must be a whole number, not {value!r}"
        return None


SCORE = Range(-1e9, 1e9)
"""Thresholds of scores without bounds, such as sums of projections and logits."""
PROBABILITY = Range(0.0, 1.0)
STRENGTH = Range(0.0, 10.0, above=True)
"""Factors on what a guard changes, as in the configuration."""


def require_in_range(settings: Mapping[str, Any], ranges: Mapping[str, Range], name: str) -> None:
    """Raise ValueError for the first setting of the guard `name` that is out of its range.

    Settings that are null or left out are not checked: whoever needs them says so.
    """
    for key, allowed in ranges.items():
        value = settings.get(key)
        fault = None if value is None else allowed.fault(value)
        if fault is not None:
            raise ValueError(f"guard {name}: {key} {fault}")
