"""What the vLLM plugin itself computes: the processor's time inside its entry points of a worker.

Beside the throughput of two engines, which other work on the machine disturbs, this is of one
process and one round, and steady to a tenth of a percent.
"""

from __future__ import annotations

import time
from functools import wraps
from typing import Any

ENTRY_POINTS = {"GuardedRunner": ("update", "begin", "end", "tell"), "Tap": ("read",)}
"""None of them calls another one."""


class Own:
    """Seconds since `reset`, of whatever of the plugin runs in this process."""

    def __init__(self) -> None:
        self.seconds = 0.0
        from steering.engines.vllm.runner import GuardedRunner
        from steering.engines.vllm.tap import Tap

        for kind in (GuardedRunner, Tap):
            for name in ENTRY_POINTS[kind.__name__]:
                setattr(kind, name, self._timed(getattr(kind, name)))

    def _timed(self, function: Any) -> Any:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - began

        return timed

    def reset(self) -> None:
        """Start anew."""
        self.seconds = 0.0
