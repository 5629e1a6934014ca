"""The cost of guards that inspect and perturb latents (IRECE), beside images without guards.

    python -m benchmarks.erasing_cost knife-irece.safetensors [--rounds 9] [--json]

Each round generates four kinds of batches in a new random order: without guards; with one guard
that inspects the images and never fires; with sixteen such guards; and with one guard that fires at
every inspection. The sixteen are the fitted guard and copies of it with a little noise. The report
has medians over the rounds, and medians of the ratios to the batch without guards of the same
round.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.image_batches import add_options, copies, generate, report, starts
from benchmarks.rounds import ratios, shuffled_rounds, summary
from guard.artifact import Artifact
from guard.models.sources import resolve_source
from steering.engines.diffusion.engine import DiffusionEngine
from steering.engines.diffusion.families import family_of
from steering.engines.diffusion.loading import load_pipeline
from steering.hidden.rows import RowGuard
from steering.images.stacks import ImageStacks
from steering.methods import METHODS

GUARDS = {"one guard": 1, "sixteen guards": 16}
"""Guards of the silent batches."""
TARGETS = {"one guard": 0.05, "sixteen guards": 0.08}
"""The most time that the guards may add, as a share."""
NEVER, ALWAYS = 1e9, -1e9
"""Thresholds of a guard that never fires, and of one that always does."""


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path, help="a fitted IRECE guard")
    parser.add_argument("--prompt", default="a house on a green background")
    add_options(parser)
    arguments = parser.parse_args()
    result = measure(Artifact.load(arguments.artifact), arguments)
    report(result, TARGETS, as_json=arguments.json)


def measure(artifact: Artifact, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds per image of each kind of batch, and the ratio to the batch without guards."""
    family = family_of(load_pipeline(resolve_source(arguments.model)))
    guards = copies(artifact, max(GUARDS.values()))
    eraser = METHODS[artifact.meta.method].stacked(guards, family.device)
    engine = DiffusionEngine(family, ImageStacks(latents=(eraser,)), capacity=arguments.batch)
    names = [guard.name for guard in guards]
    carried: dict[str, list[RowGuard]] = {
        "bare": [],
        **{
            kind: [RowGuard(name, NEVER, 1.0) for name in names[:count]]
            for kind, count in GUARDS.items()
        },
        "broken at every look": [RowGuard(names[0], ALWAYS, 1.0)],
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in carried}
    for number, kind in shuffled_rounds(list(carried), arguments.rounds):
        batch = starts(arguments.prompt, arguments.batch, arguments, carried[kind])
        began = time.perf_counter()
        generate(engine, batch)
        if number:
            seconds[kind].append((time.perf_counter() - began) / arguments.batch)
    engine.close()
    return {kind: summary(taken, ratios(taken, seconds["bare"])) for kind, taken in seconds.items()}


if __name__ == "__main__":
    main()
