"""Images that arrive one behind the other, beside a batch that starts together.

`python -m benchmarks.image_throughput`. By turns in one run, in an order drawn anew each round:
`rows` requests that start together, and the same requests when one more joins every `apart` steps
of the loop. The figure is the staggered run's images a second over those of the other one of its
round. While requests still come in and when the last ones leave, fewer rows share a forward: that
is part of what a stagger costs.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rounds import ratios, told
from guard.models.sources import resolve_source
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.loading import load_pipeline

TARGET = 0.9


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--prompt", default="a house on a green background")
    parser.add_argument("--rows", type=int, default=8, help="requests")
    parser.add_argument("--apart", type=int, nargs="+", default=[1, 3], help="steps between two")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(family_of(load_pipeline(resolve_source(arguments.model))), arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    table = Table("steps between two requests", "seconds an image", "of together", "quartiles")
    for apart, part in result.items():
        low, high = part["quartiles"]
        table.add_row(
            apart, f"{part['seconds']:.3f}", f"{part['ratio']:.3f}", f"{low:.3f} to {high:.3f}"
        )
    Console().print(table)
    Console().print(f"target: at least {TARGET} of together")


def measure(family: Family, arguments: argparse.Namespace) -> dict[str, Any]:
    """For each distance, 0 among them: seconds an image, throughput over that of together."""
    engine = DiffusionEngine(family, capacity=arguments.rows)
    starts = [
        ImageStart(arguments.prompt, seed=seed, steps=arguments.steps, guidance=arguments.guidance)
        for seed in range(arguments.rows)
    ]
    distances = [0, *arguments.apart]
    taken: dict[int, list[float]] = {apart: [] for apart in distances}
    draw = random.Random(0)
    with torch.no_grad():
        for turn in range(arguments.rounds + 1):
            for apart in draw.sample(distances, len(distances)):
                seconds = _drawn(engine, starts, apart)
                if turn:  # the first round warms up
                    taken[apart].append(seconds / len(starts))
    return {str(apart): told(own, ratios(taken[0], own)) for apart, own in taken.items()}


def _drawn(engine: DiffusionEngine, starts: Sequence[ImageStart], apart: int) -> float:
    """Seconds until all requests are drawn; a new one comes every `apart` steps, 0 all at once."""
    engine.reset()
    began = time.perf_counter()
    waiting = list(starts)
    left, steps = len(starts), 0
    while left:
        if waiting and (not apart or steps % apart == 0):
            joining = waiting if not apart else waiting[:1]
            engine.start(joining)
            waiting = waiting[len(joining) :]
        done = engine.step()
        steps += 1
        if done:
            engine.images(done)
            engine.drop(done)
            left -= len(done)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
