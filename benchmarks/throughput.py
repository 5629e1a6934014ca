"""Tokens per second of guarded relative to bare traffic, in one run.

    python -m benchmarks.throughput [--rounds 9] [--json]       (make bench)

The same prompts run bare and guarded in a random order, in batches of 1 and 16, with 1 and with 64
guards loaded, through the engine of the server. Each row has one guard (with 64 loaded, each row
another one) that checks every generated token, the most expensive setting. All prompts are retain
prompts: nothing fires, so that both sides generate the same tokens and the difference is the cost
of the guard alone. The report has medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rounds import ratios, shuffled_rounds, summary
from guard.artifact import Artifact
from guard.data.prompts import RetainPrompt, in_split, read_rows
from guard.models.chat import TransformersChat
from steering.engines.transformers.engine import RowStart, TransformersEngine
from steering.engines.transformers.sampling import RowSampling
from steering.hidden.rows import RowGuard
from steering.methods.fitted import FittedGuard
from steering.methods.steer import SteerGuard, bank_of, loaded
from steering.prompt import Prompt

TOPIC = Path("examples/harry-potter")
TOKENS = 48


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    chat = TransformersChat.load(arguments.model)
    rows = in_split(read_rows(TOPIC / "retain.jsonl", RetainPrompt), "test")
    prompts = [chat.prompt(row.prompt) for row in rows if not row.near][:16]
    results = [
        measure(chat, prompts[:batch], guards, arguments.rounds)
        for batch in (1, 16)
        for guards in (1, 64)
    ]
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    table = Table("batch", "guards", "bare tok/s", "guarded tok/s", "guarded / bare", "quartiles")
    for result in results:
        low, high = result["quartiles"]
        table.add_row(
            str(result["batch"]),
            str(result["guards"]),
            f"{result['bare']:.1f}",
            f"{result['guarded']:.1f}",
            f"{result['ratio']:.3f}",
            f"{low:.3f} to {high:.3f}",
        )
    Console().print(table)


def measure(
    chat: TransformersChat, prompts: Sequence[Prompt], guards: int, rounds: int
) -> dict[str, Any]:
    """One setting: median tokens per second of both sides, and of their ratios within a round."""
    shipped = Artifact.load(TOPIC / "steer.safetensors")
    return measure_sides(chat, prompts, copies(shipped, guards), rounds)


def measure_sides(
    chat: TransformersChat, prompts: Sequence[Prompt], guards: Sequence[SteerGuard], rounds: int
) -> dict[str, Any]:
    """As `measure`, with these guards loaded; each row carries one of them."""
    engine = TransformersEngine(chat.model, bank_of(guards, chat.device), capacity=len(prompts))
    sides: dict[str, list[tuple[RowGuard, ...]]] = {
        "bare": [() for _ in prompts],
        "guarded": [
            # a threshold that nothing reaches: the guard checks every token and never fires
            (RowGuard(guards[i % len(guards)].name, threshold=1e9, strength=1.0, recheck=1e9),)
            for i in range(len(prompts))
        ],
    }
    speeds: dict[str, list[float]] = {"bare": [], "guarded": []}
    for number, side in shuffled_rounds(list(sides), rounds):
        speed = run(engine, prompts, sides[side])
        if number:
            speeds[side].append(speed)
    engine.close()
    relative = summary(speeds["guarded"], ratios(speeds["guarded"], speeds["bare"]))
    return {
        "batch": len(prompts),
        "guards": len(guards),
        "bare": statistics.median(speeds["bare"]),
        "guarded": statistics.median(speeds["guarded"]),
        "ratio": relative["ratio"],
        "quartiles": relative["quartiles"],
    }


def starts_of(prompts: Sequence[Prompt], guards: Sequence[tuple[RowGuard, ...]]) -> list[RowStart]:
    """Greedy rows of these prompts, each with its guards."""
    return [
        RowStart(prompt, carried, RowSampling())
        for prompt, carried in zip(prompts, guards, strict=True)
    ]


def copies(artifact: Artifact, count: int) -> list[SteerGuard]:
    """The fitted guard under `count` names, its gates with a little noise so that they differ."""
    fitted = loaded(FittedGuard("guard", artifact.tensors, artifact.meta.settings))
    guards = []
    for number in range(count):
        noise = torch.Generator().manual_seed(number)
        shift = torch.randn(fitted.gates.shape, generator=noise) * fitted.gates.std() * 0.01
        guards.append(replace(fitted, name=f"guard-{number}", gates=fitted.gates + shift))
    return guards


def run(
    engine: TransformersEngine,
    prompts: Sequence[Prompt],
    guards: Sequence[tuple[RowGuard, ...]],
) -> float:
    """Tokens per second of one batch."""
    starts = starts_of(prompts, guards)
    engine.reset()
    began = time.perf_counter()
    engine.prefill(starts)
    for _ in range(TOKENS - 1):
        engine.decode()
    return TOKENS * len(prompts) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
