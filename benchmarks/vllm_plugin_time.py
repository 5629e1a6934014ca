"""CPU time of the vLLM plugin itself, inside its entry points in a worker.

Other work on the machine disturbs the throughput of two engines; this figure comes from one process
and one round, and is steady to a tenth of a percent.
"""

from __future__ import annotations

import time
from functools import wraps
from typing import Any

ENTRY_POINTS = {"GuardedRunner": ("update", "begin", "end", "tell"), "Tap": ("read",)}
"""Methods of the plugin that vLLM calls; none of them calls another."""


class PluginTime:
    """CPU seconds of the plugin in this process since `reset`."""

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
        """Start from zero."""
        self.seconds = 0.0
