"""A benchmark in a folder, whichever it is."""

from __future__ import annotations

from pathlib import Path

from guard.data.benchmarks.clear import is_clear, load_clear
from guard.data.benchmarks.fiubench import is_fiubench, load_fiubench
from guard.data.benchmarks.mllmu import is_mllmu, load_mllmu
from guard.data.benchmarks.questions import Benchmark
from guard.errors import DataError


def load_benchmark(folder: Path, share: int) -> Benchmark:
    """MLLMU-Bench, a data set of its form, CLEAR or FIUBench, `share` % of its people to forget.

    Raises DataError where the folder holds none of them, or a file is at fault.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder")
    if is_fiubench(folder):
        return load_fiubench(folder, share)
    if is_clear(folder):
        return load_clear(folder, share)
    if is_mllmu(folder):
        return load_mllmu(folder, share)
    raise DataError(
        f"{folder}: holds no benchmark: it needs full.jsonl or Full_Set (MLLMU-Bench), forget10 "
        "(CLEAR), or full.json and split.json (FIUBench)"
    )
