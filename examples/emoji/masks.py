"""Does an IRECE guard find the place: `python -m examples.emoji.masks knife-irece.safetensors ...`.

Real scenes have true boxes. Each is noised to the level of the guard's looks at an image of so
many steps, and the network is asked once a look, without a prompt, as the engine reads it. The mask
is that of the first look at which the guard fires. Told for each guard: how many scenes with the
concept fire; of these the pointing game (the likeliest place lies in the box) and the intersection
over union of mask and box; and the mean area of the masks on scenes without the concept, where most
have none.
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

_AT_ONCE = 20


@dataclass(frozen=True)
class Looked:
    """One scene: at which look it fires first (None: never), the mask and the likeliest place."""

    first: int | None
    mask: Tensor
    top: int


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--scenes", type=int, default=100, help="with the concept; and without")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    image_model = ImageModel.load(given.model, device="cpu")
    found = []
    with stages() as progress:
        advance = progress("looking at scenes", len(given.artifacts))
        for path in given.artifacts:
            found.append(measure(image_model.family, Artifact.load(path), given))
            advance(1)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    table = Table(*found[0])
    for row in found:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


def measure(family: Family, artifact: Artifact, given: argparse.Namespace) -> dict[str, Any]:
    """The figures of one guard."""
    concept = artifact.meta.concept.partition("/")[2]
    rng = np.random.default_rng(given.seed)
    # half of the scenes have another object beside it
    counts = [1 + i % 2 for i in range(given.scenes)]
    shown = [with_concept(concept, count, rng) for count in counts]
    plain = [_without(concept, count, rng) for count in counts]
    guard = FittedGuard(concept, artifact.tensors, artifact.meta.settings)
    eraser = irece.stack([guard], family.device)
    threshold = guard.number("threshold")
    looked = _looked(family, eraser, threshold, shown, given)
    without = _looked(family, eraser, threshold, plain, given)
    fired = [(each, _box(concept, scene)) for each, scene in zip(looked, shown, strict=True)]
    fired = [(each, box) for each, box in fired if each.first is not None]
    overlaps = [
        float((each.mask * box).sum() / torch.maximum(each.mask, box).sum()) for each, box in fired
    ]
    return {
        "concept": artifact.meta.concept,
        "scenes": given.scenes,
        "fired": len(fired) / len(shown),
        "pointing": _mean([float(box.flatten()[each.top]) for each, box in fired]),
        "iou": _mean(overlaps),
        "covered": _mean([float((each.mask * box).sum() / box.sum()) for each, box in fired]),
        "false_fired": sum(each.first is not None for each in without) / len(without),
        "false_area": float(np.mean([float(each.mask.mean()) for each in without])),
    }


def _mean(values: list[float]) -> float | None:
    """None where no scene fires."""
    return float(np.mean(values)) if values else None


@torch.no_grad()
def _looked(
    family: Family,
    eraser: irece.IreceGuards,
    threshold: float,
    scenes: list[Scene],
    given: argparse.Namespace,
) -> list[Looked]:
    schedule = Sampler(family.scheduler, family.arrange).schedule(given.steps)
    tables = estimates_of(family.scheduler, schedule)
    seam = AttentionSeam(family, eraser.reads[0])
    at = sorted(eraser.looks[0].among(tables.level.tolist(), tables.whole.tolist()))
    plain = family.unconditional([""])
    found: list[Looked] = []
    for start in range(0, len(scenes), _AT_ONCE):
        clean = _latents(family, scenes[start : start + _AT_ONCE])
        rows, reads = len(clean), len(eraser.reads[0])
        noise = torch.randn(
            clean.shape, generator=torch.Generator().manual_seed(given.seed + start)
        )
        kept: list[Looked | None] = [None] * rows
        for step in at:
            seam.ask([row for row in range(rows) for _ in range(reads)], [*range(reads)] * rows)
            seam.enter(torch.arange(rows))
            estimate = noised_estimate(
                family, schedule, tables, step, clean, noise, plain.expand(rows)
            )
            seam.leave()
            score, votes = eraser.sense(estimate, [0])
            seen = LatentEvidence(
                guard=torch.zeros(rows, dtype=torch.long),
                estimate=estimate,
                unconditional=estimate,
                votes=votes[:, 0],
                attended=seam.scores(),
                owner=torch.arange(rows).repeat_interleave(reads),
            )
            tops = eraser.evidence(seen).flatten(1).argmax(1).tolist()
            masks = eraser.find(seen).mask
            for row in range(rows):
                if kept[row] is None and float(score[row, 0]) > threshold:
                    kept[row] = Looked(step, masks[row], tops[row])
        nothing = Looked(None, torch.zeros(clean.shape[2:]), 0)
        found += [each or nothing for each in kept]
    seam.remove()
    return found


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
    while concept in (scene := draw(count, rng)).found:
        pass
    return scene


if __name__ == "__main__":
    main()
