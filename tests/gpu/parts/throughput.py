"""Throughput of vLLM with the plugin beside bare vLLM, and its host syncs for one forward.

Engines with 0, 1, 256 and 10,000 loaded guards (eager 0 and 256) beside one without the plugin stay
alive and take turns (`benchmarks/vllm_throughput.py`), in bfloat16, on the runner that vLLM takes
by itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.host_syncs import Syncs
from benchmarks.vllm_engine import Engine, Options
from benchmarks.vllm_guards import Traffic
from benchmarks.vllm_throughput import (
    GUARDED,
    IDLE,
    OWN_GUARDED,
    OWN_IDLE,
    Side,
    compare,
    plan,
    started,
)
from tests.gpu.parts.models import language_model
from tests.gpu.report import Figure
from tests.gpu.settings import Add, Settings, require_packages

LOADED, EAGER_LOADED, SMOKE_LOADED = (0, 1, 256, 10_000), (0, 256), (0, 2)
SHARE = 0.1
"""Of the GPU's memory: all engines are there at once."""
TRAFFIC = (Traffic(fires=False, rechecks=True), Traffic(fires=True, rechecks=True))
"""The dearer kinds: every generated token is checked."""
OWN_SYNCS = 0.05
"""The most waits for the GPU that the plugin may add to a forward; not each is a whole one, since
the end of a round differs."""


def measure(settings: Settings, add: Add, graphs: bool) -> None:
    """With vLLM's own graphs, or eager."""
    require_packages("vllm")
    folder = settings.folder("guards")
    shutil.rmtree(folder)
    folder.mkdir()
    model, fitted = language_model(settings)
    smoke = settings.smoke
    options = Options(
        model=model,
        config=None,
        requests=8 if smoke else 128,
        tokens=4 if smoke else 96,
        eager=not graphs or not settings.on_gpu,
        threads=1,
        cache_mib=256 if smoke else 4096,
        dtype="bfloat16" if settings.on_gpu else "float32",
        share=SHARE,
    )
    loaded = SMOKE_LOADED if smoke else LOADED if graphs else EAGER_LOADED
    kinds, sides = plan(loaded, options.requests, TRAFFIC)
    rounds = 2 if smoke else 9 if graphs else 5
    together = settings.workers > 1
    with started(options, kinds, folder, together=together, fitted=fitted) as engines:
        result = compare(engines, sides, rounds)
        figures(result["sides"], options, settings, add)
        syncs(engines, sides, add)
        for name, engine in engines.items():
            sizes = engine.memory()
            add(Figure(f"{name}: tables", sum(sizes.values()) - sizes["resident"], "bytes"))


def figures(
    sides: Mapping[str, Mapping[str, Any]], options: Options, settings: Settings, add: Add
) -> None:
    """Throughput of each side relative to the first one, and the plugin's own CPU time."""
    tokens = options.requests * options.tokens
    for name, side in sides.items():
        seconds = side["wall"]["seconds"]
        add(Figure(f"{name}: throughput", tokens / seconds, "tokens/s"))
        if name == "bare":
            continue
        targets = (IDLE, OWN_IDLE) if name.endswith(" idle") else (GUARDED, OWN_GUARDED)
        target, own = map(settings.speed, targets)
        note = "quartiles {:.3f} to {:.3f}".format(*side["wall"]["quartiles"])
        add(Figure(f"{name}: of bare", side["wall"]["ratio"], "ratio", target, note=note))
        add(Figure(f"{name}: own CPU time", side["own"], "of the process", own, "at most"))
        add(Figure(f"{name}: own CPU time of a forward", side["step"] * 1e6, "µs"))
        same = f"{side['same']} of {options.requests} requests with the bare tokens"
        add(Figure(f"{name}: requests that fired", side["fired"], "requests", note=same))


def syncs(engines: Mapping[str, Engine], sides: Sequence[Side], add: Add) -> None:
    """Host syncs of one forward of each side, beyond those of the first side."""
    bare: Syncs | None = None
    for side in sides:
        count, places = engines[side.engine].syncs(side.policies)
        if bare is None:
            bare = count
            add(Figure(f"{side.name}: waits for the GPU", count.waits, "a forward"))
            continue
        own = count - bare
        where = ", ".join(f"{place} {times}x" for place, times in [*places.items()][:5])
        name = f"{side.name}: own waits for the GPU"
        add(Figure(name, own.waits, "a forward", OWN_SYNCS, "at most", note=where))
        add(Figure(f"{side.name}: own copies from the GPU", own.copies, "a forward"))
        add(Figure(f"{side.name}: own scalars read", own.scalars, "a forward"))
