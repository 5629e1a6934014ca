"""Throughput of image requests that arrive one after the other, relative to one batch.

    python -m benchmarks.image_throughput [--rounds 7] [--json]

Each round measures in a new random order: `--rows` requests that start together, and the same
requests when another one joins every `--apart` steps of the loop. The figure is the throughput of
the staggered run divided by that of the batch of the same round. While requests still arrive, and
when the last ones finish, fewer rows share a forward pass: that is part of the cost.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.image_batches import add_options, starts
from benchmarks.rounds import ratios, shuffled_rounds, summary
from guard.models.sources import resolve_source
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.loading import load_pipeline

TARGET = 0.9


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="a house on a green background")
    parser.add_argument("--rows", type=int, default=8, help="requests")
    parser.add_argument(
        "--apart", type=int, nargs="+", default=[1, 3], help="steps between two requests"
    )
    add_options(parser, batch=False, rounds=7)
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
    """Seconds per image and relative throughput by distance in steps; 0 is the batch."""
    engine = DiffusionEngine(family, capacity=arguments.rows)
    requests = starts(arguments.prompt, arguments.rows, arguments)
    distances = [0, *arguments.apart]
    seconds: dict[int, list[float]] = {apart: [] for apart in distances}
    with torch.no_grad():
        for number, apart in shuffled_rounds(distances, arguments.rounds):
            duration = _generate(engine, requests, apart)
            if number:
                seconds[apart].append(duration / len(requests))
    return {
        str(apart): summary(taken, ratios(seconds[0], taken)) for apart, taken in seconds.items()
    }


def _generate(engine: DiffusionEngine, requests: Sequence[ImageStart], apart: int) -> float:
    """Seconds until all images are finished; a request joins every `apart` steps, with 0 all at
    once."""
    engine.reset()
    began = time.perf_counter()
    waiting = list(requests)
    left, steps = len(requests), 0
    while left:
        if waiting and (not apart or steps % apart == 0):
            joining = waiting if not apart else waiting[:1]
            engine.start(joining)
            waiting = waiting[len(joining) :]
        finished = engine.step()
        steps += 1
        if finished:
            engine.images(finished)
            engine.drop(finished)
            left -= len(finished)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
