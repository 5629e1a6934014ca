"""CPU time of the vLLM plugin itself, in the process of an engine.

Other work on the machine disturbs the throughput of two engines; this figure comes from one process
and one round, and is steady to a tenth of a percent.

The plugin puts functions of its own in place of vLLM's, which call those of vLLM. A clock runs
inside the former and stands still inside the latter, so that it counts all that the plugin does, in
the worker, the scheduler and the front end, and nothing of vLLM. No list of functions is kept: they
are found by the file that their code comes from, whatever the release and the model runner.
"""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = ("steering/engines/vllm", "server/vllm")
"""Where the plugin's own code is, below the root of the repository."""

CALLED = frozenset({"get_output"})
"""Methods of vLLM's that the plugin calls on objects which vLLM has given it."""

Clock = Callable[[], float]


class OwnTime:
    """CPU seconds that threads have spent in `own` functions and not in `others` called by them.

    Threads count by themselves: what another one does in the meantime is not counted.
    """

    def __init__(self, clock: Clock = time.thread_time) -> None:
        self._clock = clock
        self._local = threading.local()
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Start from zero. Not while an own function runs."""
        self.seconds = 0.0
        self.calls: dict[str, int] = {}
        """Calls of own functions by name."""

    def own(self, function: Any) -> Any:
        """The function, counted."""
        return self._switching(function, True)

    def others(self, function: Any) -> Any:
        """The function, not counted where an own function calls it."""
        return self._switching(function, False)

    def _switching(self, function: Any, counts: bool) -> Any:
        name = getattr(function, "__name__", "")

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(self._local, "counts", False)
            if counts:
                self.calls[name] = self.calls.get(name, 0) + 1
            if counts == outer:
                return function(*args, **kwargs)
            self._switch(counts)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch(outer)

        return timed

    def _switch(self, counts: bool) -> None:
        now = self._clock()
        if getattr(self._local, "counts", False):
            with self._lock:
                self.seconds += now - self._local.since
        self._local.counts, self._local.since = counts, now


class PluginTime(OwnTime):
    """The CPU seconds of the plugin in this process, in which it is installed.

    Raises RuntimeError where none of its functions is found.
    """

    def __init__(self) -> None:
        super().__init__()
        found = 0
        for kind in _classes("vllm"):
            for name, value in _functions(kind):
                if _is_own(value):
                    self._pause_inside(value)
                    _replace(kind, name, self.own(value))
                    found += 1
                elif name in CALLED:
                    _replace(kind, name, self.others(value))
        for kind in _classes(*(folder.replace("/", ".") for folder in FOLDERS)):
            for name, value in _functions(kind):
                if not name.startswith("__"):
                    _replace(kind, name, self.own(value))
        if not found:
            raise RuntimeError("no function of vLLM is the plugin's: it is not installed here")

    def _pause_inside(self, function: FunctionType) -> None:
        """Make the clock stand still in the functions of vLLM that `function` calls."""
        for cell in function.__closure__ or ():
            value = cell.cell_contents
            if isinstance(value, FunctionType) and not _is_own(value):
                cell.cell_contents = self.others(value)

    @property
    def steps(self) -> int:
        """Forwards since the last reset."""
        return self.calls.get("execute_model", 0)


def _classes(*packages: str) -> Iterator[type]:
    """The classes of all loaded modules below `packages`, each once."""
    seen: set[type] = set()
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and name.startswith(packages):
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == name and value not in seen:
                    seen.add(value)
                    yield value


def _functions(kind: type) -> Iterator[tuple[str, FunctionType]]:
    for name, value in list(vars(kind).items()):
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if isinstance(function, FunctionType) and not _works_later(function):
            yield name, function


def _works_later(function: FunctionType) -> bool:
    """Whether a call only makes what does the work: a generator, or a coroutine."""
    kinds = (
        inspect.isgeneratorfunction,
        inspect.iscoroutinefunction,
        inspect.isasyncgenfunction,
    )
    return any(kind(function) for kind in kinds)


def _replace(kind: type, name: str, function: Any) -> None:
    former = vars(kind)[name]
    wrapper = type(former) if isinstance(former, (classmethod, staticmethod)) else None
    setattr(kind, name, wrapper(function) if wrapper else function)


def _is_own(function: FunctionType) -> bool:
    file = Path(function.__code__.co_filename)
    return any(file.is_relative_to(ROOT / folder) for folder in FOLDERS)
