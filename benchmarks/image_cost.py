"""What an image guard costs beside the image, in one run: `python -m benchmarks.image_cost`.

By turns, in an order drawn anew each round: an image without guards, detection with 64 concepts
loaded and all of them carried by the request (nothing fires), the refinement of a request that
fires, its detection taken off, and what 64 classifiers of latents take to look at one finished
image. The 64 are copies of one fitted guard, each turned a little. Medians over the rounds, and
medians of each round's ratios to its own image.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rounds import ratios, told
from guard.artifact import Artifact
from guard.models.sources import resolve_source
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.loading import load_pipeline
from steering.hidden.rows import RowGuard
from steering.images.embedding import EmbeddingBank
from steering.images.output import OutputBank
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard

CONCEPTS = 64
DETECTION, REFINEMENT = 0.01, 0.05
PARTS = ("picture", "detection", "refinement", "looking")
_REPEATS = 5
"""Of all but images in a round: each takes milliseconds."""


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path, help="a fitted embedding guard")
    parser.add_argument("prompt", help="a prompt on which it fires")
    parser.add_argument("--latents", type=Path, help="a classifier of latents, to be measured too")
    parser.add_argument("--silent", default="a house on a green background")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=4, help="images drawn together")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    family = family_of(load_pipeline(resolve_source(arguments.model)))
    latents = Artifact.load(arguments.latents) if arguments.latents else None
    result = measure(family, Artifact.load(arguments.artifact), arguments, latents)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    table = Table("what", "ms", "of an image", "quartiles", "target")
    targets = {"detection": DETECTION, "refinement": REFINEMENT}
    for name in (name for name in PARTS if name in result):
        part, target = result[name], targets.get(name)
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
    """Seconds and ratios of each part; raises SystemExit where the guard does not fire."""
    guards = copies(artifact)
    bank = EmbeddingBank([METHODS[artifact.meta.method].stacked(guards, family.device)])
    threshold = guards[0].number("threshold")
    strength = guards[0].number("strength")
    fitted = [RowGuard(name, threshold, strength) for name in bank.names]
    # a threshold that nothing reaches: all of them look, none acts
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

    def image() -> None:
        engine.reset()
        engine.start(
            [
                ImageStart(
                    arguments.silent, seed=seed, steps=arguments.steps, guidance=arguments.guidance
                )
                for seed in range(arguments.batch)
            ]
        )
        done: list[int] = []
        while not done:
            done = engine.step()
        engine.images(done)

    parts: dict[str, tuple[Callable[[], object], int, int]] = {
        "picture": (image, 1, arguments.batch),
        "detection": (lambda: bank.apply(calm, [silent]), _REPEATS, 1),
        "firing": (lambda: bank.apply(unsafe, [firing]), _REPEATS, 1),
    }
    if latents is not None:
        parts["looking"] = (_looking(family, latents), _REPEATS, 1)
    taken: dict[str, list[float]] = {name: [] for name in parts}
    draw = random.Random(0)
    with torch.no_grad():
        for turn in range(arguments.rounds + 1):
            for name in draw.sample(sorted(parts), len(parts)):
                run, repeats, each = parts[name]
                began = time.perf_counter()
                for _ in range(repeats):
                    run()
                if turn:  # the first round warms up
                    taken[name].append((time.perf_counter() - began) / repeats / each)
    pairs = zip(taken["firing"], taken["detection"], strict=True)
    taken["refinement"] = [whole - looking for whole, looking in pairs]
    about = {"prompt": arguments.prompt, "steps_taken": steps, "concepts": CONCEPTS}
    return about | {
        name: told(taken[name], ratios(taken[name], taken["picture"]))
        for name in PARTS
        if name in taken
    }


def _looking(family: Family, artifact: Artifact) -> Callable[[], object]:
    """What a complete row takes: its latents through all classifiers."""
    guards = copies(artifact)
    bank = OutputBank([METHODS[artifact.meta.method].stacked(guards, family.device)])
    silent = [RowGuard(name, 1e9, 1.0) for name in bank.names]
    latents = family.noise([0])
    return lambda: bank.read(family.unpacked(latents), [silent])


def copies(artifact: Artifact) -> list[FittedGuard]:
    """The fitted guard, and others that are nearly like it: no two are the same."""
    copies = []
    for number in range(CONCEPTS):
        rng = np.random.default_rng(number)
        tensors = {
            name: values * (1 + (0.01 * rng.standard_normal(values.shape) if number else 0.0))
            for name, values in artifact.tensors.items()
        }
        floats = {name: values.astype(np.float32) for name, values in tensors.items()}
        copies.append(FittedGuard(f"guard-{number}", floats, artifact.meta.settings))
    return copies


if __name__ == "__main__":
    main()
