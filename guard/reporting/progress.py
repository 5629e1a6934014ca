"""Progress of long runs: bars on a terminal, otherwise a line per stage and one every so often."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EVERY_S = 15.0
"""Between two lines of one stage, where there is no terminal."""

Stages = Callable[[str, int], Callable[[int], None]]
"""`stages(stage, total)` begins a stage and returns the function that advances it."""


@contextmanager
def stages() -> Iterator[Stages]:
    """Show stages on stderr in this context."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        lines = Lines()
        with lines.ticking():
            yield lines.begin
        return
    columns = (
        *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TimeElapsedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console) as bars:

        def begin(stage: str, total: int) -> Callable[[int], None]:
            task = bars.add_task(stage, total=total)
            return lambda count: bars.advance(task, count)

        yield begin


class Lines:
    """Stages as lines on stderr: one as a stage begins, and one at each `tick` while it goes on."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._started = now, now()
        self._stage, self._total, self._done, self._began = "", 0, 0, self._started

    def begin(self, stage: str, total: int) -> Callable[[int], None]:
        """Begin a stage, as `Stages` do."""
        self._stage, self._total, self._done, self._began = stage, total, 0, self._now()
        self._say(f"{stage} ({total})")
        return self._advance

    def tick(self) -> None:
        """Say how far the stage is, and how long it may take yet where that is known."""
        if not self._stage or self._done >= self._total:
            return
        line = f"{self._stage}: {self._done} of {self._total}"
        if self._done:
            took = self._now() - self._began
            left = took / self._done * (self._total - self._done)
            line += f", about {_span(left)} left"
        self._say(line)

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Tick every EVERY_S in this context."""
        over = Event()

        def tick() -> None:
            while not over.wait(EVERY_S):
                self.tick()

        thread = Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _advance(self, count: int) -> None:
        self._done += count

    def _say(self, what: str) -> None:
        print(f"{self._now() - self._started:6.0f} s  {what}", file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    """Seconds in words that are read at a glance."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
