"""Localization by IRECE guards: `python -m examples.emoji.masks knife-irece.safetensors ...`.

Real scenes have true boxes. A scene is noised to the levels at which the guard inspects an image of
`--steps` steps, and the network runs once per inspection, without a prompt, as in the engine. The
mask is that of the first inspection at which the guard fires. The report has for each guard the
share of scenes with the concept on which it fires; on these the pointing game (the most likely
position is inside the box) and the intersection over union of mask and box; and the mean area of
the masks on scenes without the concept, most of which have none.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from examples.emoji.scenes import CELL, Placed, Scene, draw, render
from examples.emoji.sprites import names
from guard.artifact import Artifact
from guard.fitting.images.reference_images import noised_estimate
from guard.models.images import ImageModel
from guard.reporting.progress import stages
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.sampling.estimates import estimates_of
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.engines.diffusion.seams.attention import AttentionSeam
from steering.images.latent import LatentEvidence
from steering.methods import irece
from steering.methods.fitted import FittedGuard

_BATCH = 20


@dataclass(frozen=True)
class Inspection:
    """The first step at which a guard fires on a scene (None: never), its mask, the likeliest
    place."""

    first: int | None
    mask: Tensor
    top: int


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument(
        "--scenes", type=int, default=100, help="with the concept, and as many without"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = ImageModel.load(arguments.model, device="cpu")
    results = []
    with stages() as progress:
        advance = progress("inspecting scenes", len(arguments.artifacts))
        for path in arguments.artifacts:
            results.append(measure(model.family, Artifact.load(path), arguments))
            advance(1)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    table = Table(*results[0])
    for row in results:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


def measure(family: Family, artifact: Artifact, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of one guard."""
    concept = artifact.meta.concept.partition("/")[2]
    rng = np.random.default_rng(arguments.seed)
    # half of the scenes have another object beside the concept
    counts = [1 + i % 2 for i in range(arguments.scenes)]
    with_it = [with_concept(concept, count, rng) for count in counts]
    without_it = [_without(concept, count, rng) for count in counts]
    guard = FittedGuard(concept, artifact.tensors, artifact.meta.settings)
    eraser = irece.stack([guard], family.device)
    threshold = guard.number("threshold")
    positive = _inspect(family, eraser, threshold, with_it, arguments)
    negative = _inspect(family, eraser, threshold, without_it, arguments)
    fired = [
        (inspection, _box(concept, scene))
        for inspection, scene in zip(positive, with_it, strict=True)
        if inspection.first is not None
    ]
    overlaps = [
        float((inspection.mask * box).sum() / torch.maximum(inspection.mask, box).sum())
        for inspection, box in fired
    ]
    return {
        "concept": artifact.meta.concept,
        "scenes": arguments.scenes,
        "fired": len(fired) / len(with_it),
        "pointing": _mean([float(box.flatten()[inspection.top]) for inspection, box in fired]),
        "iou": _mean(overlaps),
        "covered": _mean(
            [float((inspection.mask * box).sum() / box.sum()) for inspection, box in fired]
        ),
        "false_fired": sum(inspection.first is not None for inspection in negative) / len(negative),
        "false_area": float(np.mean([float(inspection.mask.mean()) for inspection in negative])),
    }


def _mean(values: list[float]) -> float | None:
    """The mean, or None where the guard fires on no scene."""
    return float(np.mean(values)) if values else None


@torch.no_grad()
def _inspect(
    family: Family,
    eraser: irece.IreceGuards,
    threshold: float,
    scenes: list[Scene],
    arguments: argparse.Namespace,
) -> list[Inspection]:
    """The inspections of all scenes, in their order."""
    schedule = Sampler(family.scheduler, family.arrange).schedule(arguments.steps)
    tables = estimates_of(family.scheduler, schedule)
    seam = AttentionSeam(family, eraser.probes[0])
    steps = sorted(eraser.inspections[0].among(tables.level.tolist(), tables.whole.tolist()))
    plain = family.unconditional([""])
    inspections: list[Inspection] = []
    for start in range(0, len(scenes), _BATCH):
        clean = _latents(family, scenes[start : start + _BATCH])
        rows, reads = len(clean), len(eraser.probes[0])
        noise = torch.randn(
            clean.shape, generator=torch.Generator().manual_seed(arguments.seed + start)
        )
        first: list[Inspection | None] = [None] * rows
        for step in steps:
            seam.request([row for row in range(rows) for _ in range(reads)], [*range(reads)] * rows)
            seam.enter(torch.arange(rows))
            estimate = noised_estimate(
                family, schedule, tables, step, clean, noise, plain.expand(rows)
            )
            seam.leave()
            score, votes = eraser.sense(estimate, [0])
            evidence = LatentEvidence(
                guard=torch.zeros(rows, dtype=torch.long),
                estimate=estimate,
                unconditional=estimate,
                votes=votes[:, 0],
                attended=seam.scores(),
                owner=torch.arange(rows).repeat_interleave(reads),
            )
            tops = eraser.evidence_map(evidence).flatten(1).argmax(1).tolist()
            masks = eraser.locate(evidence).mask
            for row in range(rows):
                if first[row] is None and float(score[row, 0]) > threshold:
                    first[row] = Inspection(step, masks[row], tops[row])
        silent = Inspection(None, torch.zeros(clean.shape[2:]), 0)
        inspections += [inspection or silent for inspection in first]
    seam.remove()
    return inspections


def _latents(family: Family, scenes: list[Scene]) -> Tensor:
    return family.encode_image(torch.tensor(np.stack([render(scene) for scene in scenes])))


def _box(concept: str, scene: Scene) -> Tensor:
    """1 at the cells of the concept's object, `[16, 16]`."""
    side = 64 // CELL
    box = torch.zeros(side, side)
    for placed in scene.objects:
        if names()[placed.concept] == concept:
            left, top, right, bottom = (edge // CELL for edge in placed.box)
            box[top:bottom, left:right] = 1.0
    return box


def with_concept(concept: str, count: int, rng: np.random.Generator) -> Scene:
    """A random scene in which the concept takes one of the places."""
    scene = _without(concept, count, rng)
    which = int(rng.integers(count))
    objects = list(scene.objects)
    old = objects[which]
    objects[which] = Placed(names().index(concept), old.place, old.x, old.y)
    return Scene(tuple(objects), scene.style, scene.background)


def _without(concept: str, count: int, rng: np.random.Generator) -> Scene:
    while concept in (scene := draw(count, rng)).names:
        pass
    return scene


if __name__ == "__main__":
    main()
