"""Image batches of a cost benchmark: options, one batch through the engine, copies of a guard."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from guard.artifact import Artifact
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.hidden.rows import RowGuard
from steering.methods.fitted import FittedGuard


def add_options(parser: argparse.ArgumentParser, *, batch: bool = True, rounds: int = 9) -> None:
    """The options of all image benchmarks; `batch` adds the number of images in one batch."""
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    if batch:
        parser.add_argument("--batch", type=int, default=4, help="images generated together")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", action="store_true")


def report(
    result: Mapping[str, Mapping[str, Any]], targets: Mapping[str, float], *, as_json: bool
) -> None:
    """Print the `benchmarks.rounds.summary` of each kind of batch, with the most that it may take
    more than the bare one, as a share; a table or JSON."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    table = Table("batch", "ms an image", "more than bare", "quartiles", "target")
    for name, part in result.items():
        low, high = part["quartiles"]
        table.add_row(
            name,
            f"{part['seconds'] * 1000:.1f}",
            f"{part['ratio'] - 1:.2%}",
            f"{low - 1:.2%} to {high - 1:.2%}",
            f"at most {targets[name]:.0%}" if name in targets else "",
        )
    Console().print(table)


def starts(
    prompt: str, count: int, arguments: argparse.Namespace, guards: Sequence[RowGuard] = ()
) -> list[ImageStart]:
    """Requests for `count` images of one prompt, from the seeds 0, 1, ..."""
    return [
        ImageStart(
            prompt, seed=seed, steps=arguments.steps, guidance=arguments.guidance, guards=guards
        )
        for seed in range(count)
    ]


def generate(engine: DiffusionEngine, batch: Sequence[ImageStart]) -> None:
    """Generate all images of a batch that starts together."""
    engine.reset()
    engine.start(batch)
    finished: list[int] = []
    while not finished:
        finished = engine.step()
    engine.images(finished)


def copies(artifact: Artifact, count: int) -> list[FittedGuard]:
    """The fitted guard, and copies of it with a little noise, so that no two are the same."""
    guards = []
    for number in range(count):
        rng = np.random.default_rng(number)
        tensors = {
            name: values * (1 + (0.01 * rng.standard_normal(values.shape) if number else 0.0))
            for name, values in artifact.tensors.items()
        }
        floats = {name: values.astype(np.float32) for name, values in tensors.items()}
        guards.append(FittedGuard(f"guard-{number}", floats, artifact.meta.settings))
    return guards
