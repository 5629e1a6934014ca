"""The cost of image guards relative to one image, in one run.

    python -m benchmarks.image_cost rose-cgce.safetensors "a rose" [--rounds 9] [--json]

Each round measures in a new random order: images without guards; the detection of 64 loaded
concepts, all of them in the request, none of which fires; the refinement of a request that fires,
without its detection; and, with `--latents`, the inspection of a finished image by 64 classifiers
of latents. The 64 are a fitted guard and copies of it with a little noise. The report has medians
over the rounds, and medians of the ratios to the image of the same round.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.image_batches import add_options, copies, generate, starts
from benchmarks.rounds import ratios, shuffled_rounds, summary
from guard.artifact import Artifact
from guard.models.sources import resolve_source
from steering.engines.diffusion.engine import DiffusionEngine
from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.loading import load_pipeline
from steering.hidden.rows import RowGuard
from steering.images.embedding import EmbeddingBank
from steering.images.output import OutputBank
from steering.methods import METHODS

CONCEPTS = 64
TARGETS = {"detection": 0.01, "refinement": 0.05}
"""The most time of a part, as a share of an image."""
PARTS = ("picture", "detection", "refinement", "looking")
_REPEATS = 5
"""Repetitions within a round of all parts but images, which take milliseconds each."""


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path, help="a fitted embedding guard")
    parser.add_argument("prompt", help="a prompt on which it fires")
    parser.add_argument("--latents", type=Path, help="a classifier of latents to measure too")
    parser.add_argument("--silent", default="a house on a green background")
    add_options(parser)
    arguments = parser.parse_args()
    family = family_of(load_pipeline(resolve_source(arguments.model)))
    latents = Artifact.load(arguments.latents) if arguments.latents else None
    result = measure(family, Artifact.load(arguments.artifact), arguments, latents)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    table = Table("part", "ms", "of an image", "quartiles", "target")
    for name in (name for name in PARTS if name in result):
        part, target = result[name], TARGETS.get(name)
        low, high = part["quartiles"]
        table.add_row(
            name,
            f"{part['seconds'] * 1000:.2f}",
            f"{part['ratio']:.2%}",
            f"{low:.2%} to {high:.2%}",
            f"at most {target:.0%}" if target else "",
        )
    Console().print(table)
    Console().print(f"{result['steps_taken']} updates of {result['prompt']!r}")


def measure(
    family: Family,
    artifact: Artifact,
    arguments: argparse.Namespace,
    latents: Artifact | None = None,
) -> dict[str, Any]:
    """Seconds and ratios of each part. Raises SystemExit where the guard does not fire."""
    guards = copies(artifact, CONCEPTS)
    bank = EmbeddingBank([METHODS[artifact.meta.method].stacked(guards, family.device)])
    threshold = guards[0].number("threshold")
    strength = guards[0].number("strength")
    fitted = [RowGuard(name, threshold, strength) for name in bank.names]
    # a threshold that nothing reaches: all guards detect, none acts
    silent = [replace(guard, threshold=1e9) for guard in fitted]
    firing = [fitted[0], *silent[1:]]
    engine = DiffusionEngine(family, capacity=arguments.batch)
    with torch.no_grad():
        calm, unsafe = family.encode([arguments.silent]), family.encode([arguments.prompt])
    with torch.no_grad():
        (readings,) = bank.apply(unsafe, [firing]).readings
    steps = readings[fitted[0].name].steps
    if not readings[fitted[0].name].fired:
        raise SystemExit(f"the guard does not fire on {arguments.prompt!r}: give another prompt")

    batch = starts(arguments.silent, arguments.batch, arguments)
    parts: dict[str, tuple[Callable[[], object], int, int]] = {
        # the function, its repetitions, and the images of one call
        "picture": (lambda: generate(engine, batch), 1, arguments.batch),
        "detection": (lambda: bank.apply(calm, [silent]), _REPEATS, 1),
        "firing": (lambda: bank.apply(unsafe, [firing]), _REPEATS, 1),
    }
    if latents is not None:
        parts["looking"] = (_inspection(family, latents), _REPEATS, 1)
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    with torch.no_grad():
        for number, name in shuffled_rounds(list(parts), arguments.rounds):
            run, repeats, images = parts[name]
            began = time.perf_counter()
            for _ in range(repeats):
                run()
            if number:
                seconds[name].append((time.perf_counter() - began) / repeats / images)
    pairs = zip(seconds["firing"], seconds["detection"], strict=True)
    seconds["refinement"] = [firing - detection for firing, detection in pairs]
    about = {"prompt": arguments.prompt, "steps_taken": steps, "concepts": CONCEPTS}
    return about | {
        name: summary(seconds[name], ratios(seconds[name], seconds["picture"]))
        for name in PARTS
        if name in seconds
    }


def _inspection(family: Family, artifact: Artifact) -> Callable[[], object]:
    """What a complete row takes: its latents through all classifiers."""
    guards = copies(artifact, CONCEPTS)
    bank = OutputBank([METHODS[artifact.meta.method].stacked(guards, family.device)])
    silent = [RowGuard(name, 1e9, 1.0) for name in bank.names]
    latents = family.noise([0])
    return lambda: bank.read(family.unpacked(latents), [silent])


if __name__ == "__main__":
    main()
