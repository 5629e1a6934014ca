"""What differs between two recordings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.golden.outcomes import decoded_thumbnail

RELATIVE = 1e-4
"""Scores and thresholds may differ by this share of the larger one."""

ABSOLUTE = 1e-5
"""The same for scores close to zero."""

THUMBNAIL_LEVELS = 2.0
"""Mean absolute difference of two thumbnails, in levels of 255, where the arithmetic differs."""


def differences(expected: Any, actual: Any, *, same_arithmetic: bool, at: str = "") -> list[str]:
    """One line for each difference, with its place; an empty list where nothing differs.

    With `same_arithmetic` the hashes of images, masks and fitted tensors must be equal. Without
    it, thumbnails must be alike within THUMBNAIL_LEVELS, and hashes may differ.
    """
    return list(_differences(expected, actual, same_arithmetic, at))


def _differences(expected: Any, actual: Any, exact: bool, at: str) -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(actual, dict):
        if expected.keys() != actual.keys():
            yield f"{at}: has {sorted(actual)}, expected {sorted(expected)}"
        for key in expected.keys() & actual.keys():
            yield from _entry(key, expected[key], actual[key], exact, f"{at}/{key}")
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            yield f"{at}: has {len(actual)} entries, expected {len(expected)}"
        for index, (one, other) in enumerate(zip(expected, actual, strict=False)):
            yield from _differences(one, other, exact, f"{at}[{index}]")
    elif isinstance(expected, float) and isinstance(actual, float):
        if not math.isclose(expected, actual, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            yield f"{at}: {actual}, expected {expected}"
    elif expected != actual or type(expected) is not type(actual):
        yield f"{at}: {actual!r}, expected {expected!r}"


def _entry(key: str, expected: Any, actual: Any, exact: bool, at: str) -> Iterator[str]:
    if key in {"sha256", "masks"} and not exact:
        return
    if key == "thumbnail":
        one, other = (decoded_thumbnail(text).astype(np.float64) for text in (expected, actual))
        levels = float(np.abs(one - other).mean())
        if levels > (0 if exact else THUMBNAIL_LEVELS):
            yield f"{at}: differs by {levels:.2f} levels in the mean"
        return
    yield from _differences(expected, actual, exact, at)
