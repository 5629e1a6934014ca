"""The maths of each method, one file a method, and the registry that finds them by name.

A method's file has the pure functions on tensors and `load`, which turns an artifact's tensors
and settings into what the runtime stacks. A new method is one such file and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.methods import steer
from steering.methods.steer import FittedSteer

Loader = Callable[[str, Mapping[str, NDArray[np.float32]], Mapping[str, Any], int], FittedSteer]

METHODS: dict[str, Loader] = {"steer": steer.load}


def load_guard(
    method: str,
    name: str,
    tensors: Mapping[str, NDArray[np.float32]],
    settings: Mapping[str, Any],
    depth: int,
) -> FittedSteer:
    """A fitted guard, ready to be stacked, for a model of `depth` decoder layers.

    Raises ValueError, naming the fault, where the method is unknown or the artifact's tensors and
    settings do not hold.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: this release has {', '.join(METHODS)}")
    return METHODS[method](name, tensors, settings, depth)
