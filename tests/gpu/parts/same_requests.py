"""The same requests under every mode of CUDA graphs: tokens and verdicts beside eager V1.

They are those of `tests/vllm`, in float32 on a small model of random weights: prefixes in common,
random policies, aborted ones, a cache of keys too small for all at once; async scheduling as vLLM
takes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.gpu.parts.comparison import Comparison, compare, reason
from tests.gpu.report import Figure
from tests.gpu.settings import Add, Settings, Skipped, require_packages
from tests.vllm.checkpoint import save
from tests.vllm.driver import drawn, played

REQUESTS, SMOKE_REQUESTS = 200, 12
MODES = ("NONE", "PIECEWISE", "FULL_AND_PIECEWISE", "FULL_DECODE_ONLY")
CROWDED = {"num_gpu_blocks_override": 14, "scheduling_policy": "priority"}
SCORES = 1e-3
"""The most by which a score may differ, relative to it."""

SHARED = {"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": 64 * 2**20}
"""Engines that start beside each other: each keeps its part of the GPU, and none measures what is
left, which changes meanwhile."""

Played = tuple[dict[str, Any] | None, str]


def measure(settings: Settings, add: Add, runner: str) -> None:
    """All modes on `runner`; on a CPU, which has no graphs, other parts of prompts in a forward."""
    require_packages("vllm")
    if runner == "v2" and not settings.on_gpu:
        raise Skipped("model runner V2 needs a GPU")
    folder = settings.folder(f"requests-{runner}")
    save(folder)
    requests = drawn(SMOKE_REQUESTS if settings.smoke else REQUESTS, seed=5)
    eager = play(folder, requests, "v1", CROWDED)
    if eager[0] is None:
        raise RuntimeError(f"eager V1 has not run: {reason(eager[1])}")
    add(Figure("eager V1: preemptions", eager[0]["preempted"], "requests", settings.speed(1)))
    cached = sum(answer.get("cached") or 0 for answer in eager[0]["phases"][0])
    add(Figure("eager V1: tokens from cached prefixes", cached, "tokens", settings.speed(1)))
    engines: dict[str, dict[str, Any]] = {
        mode: {"enforce_eager": False, "compilation_config": {"cudagraph_mode": mode}}
        for mode in MODES
    }
    if runner == "v2":
        engines = {"eager": {}} | engines
    if not settings.on_gpu:
        engines = {"eager": {"max_num_batched_tokens": 48}}
    engines = {mode: CROWDED | engine for mode, engine in engines.items()}
    for mode, (came, told) in together(folder, requests, runner, engines, settings.workers):
        report(f"{runner} {mode}", requests, eager[0], came, told, add)


def play(
    folder: Path, requests: Sequence[Mapping[str, Any]], runner: str, engine: Mapping[str, Any]
) -> Played:
    """One engine of its own process, on the runner by name."""
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1" if runner == "v2" else "0"
    return played(folder, [requests], "config.toml", {**SHARED, **engine})


def together(
    folder: Path,
    requests: Sequence[Mapping[str, Any]],
    runner: str,
    engines: Mapping[str, Mapping[str, Any]],
    workers: int,
) -> Iterator[tuple[str, Played]]:
    """`play` of several engines, at most `workers` at once; each as soon as it and those before it
    have ended."""
    with ThreadPoolExecutor(workers) as pool:
        running = {
            name: pool.submit(play, folder, requests, runner, engine)
            for name, engine in engines.items()
        }
        for name, future in running.items():
            yield name, future.result()


def report(
    name: str,
    requests: Sequence[Mapping[str, Any]],
    eager: Mapping[str, Any],
    came: Mapping[str, Any] | None,
    told: str,
    add: Add,
) -> None:
    """Figures of an engine beside eager V1; one that has not run has no answer right."""
    if came is None:
        add(Figure(f"{name}: engine runs", 0, "engines", 1, note=reason(told)))
        return
    found: Comparison = compare(requests, eager["phases"][0], came["phases"][0])
    add(Figure(f"{name}: engine runs", 1, "engines", 1))
    add(_none(f"{name}: guarded requests with other tokens", found.guarded, found.compared))
    add(_none(f"{name}: requests with another verdict", found.verdicts, found.compared))
    add(Figure(f"{name}: largest difference of a score", found.score, "of it", SCORES, "at most"))
    # what graphs and padding change by themselves
    note = f"of {found.compared}"
    add(Figure(f"{name}: unguarded requests with other tokens", found.plain, "requests", note=note))


def _none(name: str, count: int, total: int) -> Figure:
    return Figure(name, count, "requests", 0, "at most", note=f"of {total}")
