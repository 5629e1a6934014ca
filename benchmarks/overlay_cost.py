"""The cost of overlays of the denoiser, each row another, beside images without guards.

    python -m benchmarks.overlay_cost bomb-uce-gated.safetensors [--rank 4] [--rounds 9] [--json]

Each round generates four kinds of batches in a new random order: without guards; with as many
overlays loaded as the batch has rows, which no row carries; every row carrying all of them, none of
which acts; and each row with another one that acts. The overlays are the first directions of a
fitted guard, and copies of them with a little noise. The report has medians over the rounds, and
medians of the ratios to the batch without guards of the same round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.image_batches import add_options, copies, generate, report, starts
from benchmarks.rounds import ratios, shuffled_rounds, summary
from guard.artifact import Artifact
from guard.models.sources import resolve_source
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.loading import load_pipeline
from steering.hidden.rows import RowGuard
from steering.images.stacks import ImageStacks
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard

ACTING = "each row another"
TARGETS = {ACTING: 0.06}
"""The most time that the overlays may add, as a share."""
NEVER, ALWAYS = 1e9, -1e9
"""Thresholds that every score is below, and above."""


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path, help="a fitted overlay")
    parser.add_argument("--rank", type=int, default=4, help="directions of an overlay")
    parser.add_argument("--prompt", default="a house on a green background")
    parser.add_argument(
        "--processor-time", action="store_true", help="for a machine that does other work too"
    )
    add_options(parser)
    parser.set_defaults(batch=64)
    arguments = parser.parse_args()
    family = family_of(load_pipeline(resolve_source(arguments.model)))
    result = measure(family, Artifact.load(arguments.artifact), arguments)
    report(result, TARGETS, as_json=arguments.json)


def cut(guard: FittedGuard, rank: int) -> FittedGuard:
    """An overlay with the first `rank` directions alone."""
    tensors = {
        name: values[:rank] if name.startswith(("reads.", "writes.")) else values
        for name, values in guard.tensors.items()
    }
    return replace(guard, tensors=tensors)


def measure(family: Family, artifact: Artifact, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds per image of each kind of batch, and the ratio to the batch without guards."""
    guards = [cut(guard, arguments.rank) for guard in copies(artifact, arguments.batch)]
    stack = METHODS[artifact.meta.method].stacked(guards, family.device)
    loaded = ImageStacks.by_seam([stack], overlaying=[stack])
    names = [guard.name for guard in guards]
    silent = [RowGuard(name, NEVER, 1.0) for name in names]
    plain = starts(arguments.prompt, arguments.batch, arguments)
    kinds: Mapping[str, tuple[ImageStacks, list[ImageStart]]] = {
        "bare": (ImageStacks(), plain),
        "loaded, on no row": (loaded, plain),
        "all on each row, silent": (loaded, [replace(start, guards=silent) for start in plain]),
        ACTING: (
            loaded,
            [
                replace(start, guards=[RowGuard(name, ALWAYS, 1.0)])
                for start, name in zip(plain, names, strict=True)
            ],
        ),
    }
    engine = DiffusionEngine(family, capacity=arguments.batch)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number, kind in shuffled_rounds(list(kinds), arguments.rounds):
        stacks, batch = kinds[kind]
        engine.use(stacks)  # the bare batch has no hooks either
        began = clock()
        generate(engine, batch)
        if number:
            seconds[kind].append((clock() - began) / arguments.batch)
    engine.close()
    return {kind: summary(taken, ratios(taken, seconds["bare"])) for kind, taken in seconds.items()}


if __name__ == "__main__":
    main()
