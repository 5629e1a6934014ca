"""Bounds on processor time that hold on a busy machine: the first measurement may mislead."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

ROUNDS = 3


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor time of one call, garbage collection left out: its length is that of all other
    tests' objects."""
    gc.disable()
    try:
        began = time.process_time()
        work()
        return time.process_time() - began
    finally:
        gc.enable()


def takes_less(work: Callable[[], object], seconds: float) -> bool:
    """Whether one of a few calls ends within so much processor time."""
    return any(processor_seconds(work) < seconds for _ in range(ROUNDS))


def grows_linearly(
    work: Callable[[int], object], size: int, *, constant: float, factor: float
) -> bool:
    """Whether `work(size)` takes less than `constant` seconds and `factor` times the processor time
    of an eighth of `size`."""
    work(size // 800)
    small = min(processor_seconds(lambda: work(size // 8)) for _ in range(ROUNDS))
    return takes_less(lambda: work(size), constant + factor * small)
