"""Requests for vLLM in a process of its own, and what came of them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tests.steering.tiny import prompt
from tests.vllm.emulation.settings import Settings
from tests.vllm.emulation.settings import environment as emulating
from tests.vllm.play import MARK

Requests = Sequence[Mapping[str, Any]]

SIZES = [1, 2, 4, 8, 24, 64]
"""Of the graphs that are captured; forwards of other sizes are padded."""


def environment(config: Path | None, emulated: Settings | None = None) -> dict[str, str]:
    """That of a process with vLLM's CPU build, guarded by a configuration or not, which does what
    is `emulated` of a GPU."""
    made = {"VLLM_CPU_CI_ENV": "1", **os.environ} | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    made.pop("GUARD_CONFIG", None)
    if config is not None:
        made["GUARD_CONFIG"] = str(config)
    return made if emulated is None else made | emulating(emulated, made)


def run(
    folder: Path,
    *phases: Requests,
    config: str | None = "config.toml",
    reload: tuple[int, Sequence[str]] | None = None,
    runner: str = "v1",
    graphs: str | None = None,
    asynchronous: bool = False,
    idle: bool = False,
    hook: str | None = None,
    faults: Sequence[str | None] = (),
    **engine: Any,
) -> dict[str, Any]:
    """Play phases in a process of its own; `config` None is vLLM without the plugin's doing, and
    `reload` the step of each phase at which the configuration changes, and the texts, in turn.

    `runner` is vLLM's model runner, "v1" or "v2", `graphs` a mode of CUDA graphs by name, as on a
    GPU ("NONE" compiles and captures nothing), and None the eager mode of the CPU build;
    `asynchronous` schedules ahead; `idle` has a batch of nobody run before every step, as
    data-parallel ranks do that have no requests; `hook` is for faults, see `Settings`, and `faults`
    are contexts of `tests.vllm.vision.faults`, by phase. What came has, beside the phases, a report
    of each of the `workers` (`tests.vllm.emulation.census`).
    """
    emulated = Settings(runner, graphs is not None, asynchronous, hook)
    if graphs is not None:
        compiled = {"cudagraph_mode": graphs, "cudagraph_capture_sizes": SIZES}
        compiled |= engine.get("compilation_config", {})
        engine = {"enforce_eager": False, **engine, "compilation_config": compiled}
    engine["async_scheduling"] = asynchronous
    found, told = played(folder, phases, config, engine, reload, emulated, idle, faults)
    assert found is not None, told
    return found


def played(
    folder: Path,
    phases: Sequence[Requests],
    config: str | None,
    engine: Mapping[str, Any],
    reload: tuple[int, Sequence[str]] | None = None,
    emulated: Settings | None = None,
    idle: bool = False,
    faults: Sequence[str | None] = (),
) -> tuple[dict[str, Any] | None, str]:
    """What came of them, None where the engine has failed, and what it has printed."""
    settings = {
        "model": str(folder / "model"),
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 160,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "block_size": 32,
        "num_gpu_blocks_override": 40,
        "seed": 0,
    }
    asked = [
        {"requests": [*each], "reload": reload, "idle": idle, "fault": fault}
        for each, fault in zip_longest(phases, faults)
    ]
    play = {"engine": settings | {**engine}, "phases": asked}
    path = folder / f"play-{random.randrange(10**9)}.json"
    path.write_text(json.dumps(play), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.play", str(path)],
        env=environment(folder / config if config else None, emulated),
        capture_output=True,
        text=True,
        timeout=900,
    )
    told = done.stdout[-20_000:] + done.stderr[-20_000:]
    if MARK not in done.stdout:
        return None, told
    return json.loads(done.stdout.split(MARK)[1].splitlines()[0]), told


def drawn(count: int, seed: int) -> list[dict[str, Any]]:
    """Requests of random lengths and policies, many of which begin alike; some are aborted."""
    rng = random.Random(seed)
    heads = [prompt(80, seed=i) for i in range(4)]
    found = []
    for i in range(count):
        head = rng.choice(heads)[: rng.choice((0, 32, 66, 80))]
        own = {
            "prompt": head + prompt(rng.randint(1, 50), seed=1000 + i),
            "tokens": rng.randint(2, 24),
            "policy": rng.choice([None, "none", "firm", "both", "watch"]),
            "at": i // 3,
            "priority": rng.randint(0, 3),
        }
        if rng.random() < 0.08:
            own["aborted"] = own["at"] + rng.randint(1, 6)
        found.append(own)
    return found


def alone(request: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in request.items() if key not in {"at", "aborted"}}
