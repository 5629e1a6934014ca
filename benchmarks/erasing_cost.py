"""What watching the latents costs, in one run:

    python -m benchmarks.erasing_cost knife-irece.safetensors

By turns, in an order drawn anew each round: images without guards, images that one IRECE guard
watches and that stay silent, the same with sixteen guards, and images that one guard breaks at
every look. The sixteen are the fitted one, each turned a little. Medians over the rounds, and
medians of each round's ratios to its own bare images.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.image_cost import copies
from benchmarks.rounds import ratios, told
from guard.artifact import Artifact
from guard.models.sources import resolve_source
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import family_of
from steering.engines.diffusion.loading import load_pipeline
from steering.hidden.rows import RowGuard
from steering.images.stacks import ImageStacks
from steering.methods import METHODS

WATCHED = {"one guard": 1, "sixteen guards": 16}
TARGETS = {"one guard": 0.05, "sixteen guards": 0.08}
NEVER, ALWAYS = 1e9, -1e9
"""Thresholds."""


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path, help="a fitted IRECE guard")
    parser.add_argument("--prompt", default="a house on a green background")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=4, help="images drawn together")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(Artifact.load(arguments.artifact), arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    table = Table("what", "ms an image", "more than bare", "quartiles", "target")
    for name, part in result.items():
        low, high = part["quartiles"]
        table.add_row(
            name,
            f"{part['seconds'] * 1000:.1f}",
            f"{part['ratio'] - 1:.2%}",
            f"{low - 1:.2%} to {high - 1:.2%}",
            f"at most {TARGETS[name]:.0%}" if name in TARGETS else "",
        )
    Console().print(table)


def measure(artifact: Artifact, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds an image and ratios to the bare one, of each way."""
    family = family_of(load_pipeline(resolve_source(arguments.model)))
    guards = copies(artifact)[: max(WATCHED.values())]
    eraser = METHODS[artifact.meta.method].stacked(guards, family.device)
    engine = DiffusionEngine(family, ImageStacks(latents=(eraser,)), capacity=arguments.batch)
    names = [guard.name for guard in guards]
    ways = {
        "bare": [],
        **{way: [RowGuard(n, NEVER, 1.0) for n in names[:count]] for way, count in WATCHED.items()},
        "broken at every look": [RowGuard(names[0], ALWAYS, 1.0)],
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    draw = random.Random(0)
    for turn in range(arguments.rounds + 1):
        for name in draw.sample(sorted(ways), len(ways)):
            began = time.perf_counter()
            _draw(engine, ways[name], arguments)
            if turn:  # the first round warms up
                taken[name].append((time.perf_counter() - began) / arguments.batch)
    engine.close()
    return {name: told(own, ratios(own, taken["bare"])) for name, own in taken.items()}


def _draw(engine: DiffusionEngine, guards: list[RowGuard], arguments: argparse.Namespace) -> None:
    engine.reset()
    engine.start(
        [
            ImageStart(
                arguments.prompt,
                seed=seed,
                steps=arguments.steps,
                guidance=arguments.guidance,
                guards=guards,
            )
            for seed in range(arguments.batch)
        ]
    )
    while not (done := engine.step()):
        pass
    engine.images(done)


if __name__ == "__main__":
    main()
