"""Progress of long runs: bars on a terminal, otherwise one line per stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

Stages = Callable[[str, int], Callable[[int], None]]
"""`stages(stage, total)` begins a stage and returns the function that advances it."""


@contextmanager
def stages() -> Iterator[Stages]:
    """Show stages on stderr in this context."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _lines(time.monotonic())
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


def _lines(started: float) -> Stages:
    def begin(stage: str, total: int) -> Callable[[int], None]:
        print(
            f"{time.monotonic() - started:6.0f} s  {stage} ({total})", file=sys.stderr, flush=True
        )
        return lambda count: None

    return begin
