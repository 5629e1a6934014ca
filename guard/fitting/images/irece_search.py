"""The search for IRECE's settings: attention heads, size of the mask, replacement.

The judge of an image is always a classifier that was not trained on it: a concept is *gone* if that
classifier scores the broken image under the guard's threshold. The cost is the share of the image
that was written over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from classifiers.latents import LatentClassifiers, stacked
from guard.fitting.images.latents import classifier_tensors
from guard.fitting.images.recording import BATCH
from guard.models.images import ImageModel
from guard.reporting.progress import Stages
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.hidden.rows import RowGuard
from steering.images.latent import AttentionProbe
from steering.images.stacks import ImageStacks
from steering.methods import irece
from steering.methods.fitted import FittedGuard

_TRIAL = "trial"
MOST_READS = 4
MASKS = (0.5, 0.4, 0.3, 0.2)
"""From the smallest to the largest."""
VOTES = 2.0
"""Weight of the classifiers' votes relative to one attention head. It is not searched for: most
images of a fit show one object, so a head for any object does as well as one for the concept. On
scenes with annotated boxes and two objects, heads chosen without votes often took the wrong one.
"""
SMOOTHING = 0.09
"""As a share of the image's side: about a quarter of an object in a scene of two or three."""
ENOUGH = 0.02
"""Differences up to this, between shares of images without the concept, do not count."""


@dataclass(frozen=True)
class Settings:
    """Settings as the artifact has them; `reads` are indices of the probes that were tried."""

    reads: tuple[int, ...]
    votes: float
    mask: float
    smoothing: float = SMOOTHING
    replacement: str = "background"
    level: float = 1.0
    looks: int = 1

    def as_dict(self) -> dict[str, Any]:
        """All but `reads`, which an artifact lists by layer and head."""
        return {name: value for name, value in asdict(self).items() if name != "reads"}


@dataclass(frozen=True)
class HeldOut:
    """Images of the concept with the classifiers that judge them.

    `latents [images, channels, ...]` are finished, `maps [images, probes, ...]` are the probes'
    attention maps, `members` the classifiers of all folds, and `parts [images]` the folds.
    """

    latents: Tensor
    maps: Tensor
    members: Sequence[LatentClassifiers]
    parts: Tensor
    threshold: float

    @torch.no_grad()
    def gone(self, latents: Tensor) -> Tensor:
        """`[images]`: whether the classifier that was not trained on an image no longer fires."""
        logits = torch.zeros(len(latents))
        for part in self.folds:
            held_out = self.parts == part
            logits[held_out] = self.members[part](latents[held_out].float())[:, 0]
        return logits <= self.threshold

    @property
    def folds(self) -> list[int]:
        """The folds that have images here, the largest first."""
        counts = torch.bincount(self.parts, minlength=len(self.members)).tolist()
        order = sorted(range(len(counts)), key=lambda part: -counts[part])
        return [part for part in order if counts[part]]

    @torch.no_grad()
    def votes(self) -> Tensor:
        """Vote maps `[images, ...]` of the classifiers that were trained on an image, as the guard
        computes them."""
        maps = torch.zeros(len(self.latents), *self.latents.shape[2:])
        for part in self.folds:
            images = self.parts == part
            votes = stacked(self.others(part)).votes(self.latents[images].float()).mean(1)
            maps[images] = irece.votes_map(votes, self.latents.shape[2:])
        return maps

    def others(self, part: int) -> list[LatentClassifiers]:
        """The classifiers that were trained on the images of `part`."""
        return [member for i, member in enumerate(self.members) if i != part]


@dataclass(frozen=True)
class _Breaking:
    """The shares of images in which the concept is gone, and of the image that is masked."""

    gone: float
    area: float

    @property
    def value(self) -> float:
        """An image without the concept counts as much as the whole area of one image."""
        return self.gone - self.area


def search_masks(
    held_out: HeldOut, probes: Sequence[tuple[str, int]]
) -> tuple[Settings, list[JsonValue]]:
    """Settings with heads and mask, and all trials; `probes` are layers and heads.

    Heads are added to the votes one by one while that helps: the next one is the head whose masks
    take the concept out of most images and cover least.
    """
    trials: list[dict[str, Any]] = []
    votes = held_out.votes()

    def trial(reads: Sequence[int], weight: float, mask: float) -> _Breaking:
        evidence = weight * votes + held_out.maps[:, list(reads)].sum(1)
        return _masked(held_out, evidence, mask)

    def note(reads: Sequence[int], weight: float, mask: float, breaking: _Breaking) -> None:
        trials.append(
            {
                "reads": [list(probes[i]) for i in reads],
                "votes": weight,
                "mask": mask,
                "gone": breaking.gone,
                "area": breaking.area,
            }
        )

    middle = MASKS[2]
    chosen: list[int] = []
    best = trial(chosen, VOTES, middle)
    note(chosen, VOTES, middle, best)
    while len(chosen) < min(MOST_READS, len(probes)):
        candidates = {
            i: trial([*chosen, i], VOTES, middle) for i in range(len(probes)) if i not in chosen
        }
        top = max(candidates, key=lambda i: candidates[i].value)
        if candidates[top].value <= best.value + ENOUGH / 2:
            break
        chosen.append(top)
        best = candidates[top]
        note(chosen, VOTES, middle, best)
    if chosen:
        note(chosen, 0.0, middle, trial(chosen, 0.0, middle))
    masks = {mask: trial(chosen, VOTES, mask) for mask in MASKS}
    for mask, breaking in masks.items():
        note(chosen, VOTES, mask, breaking)
    most = max(breaking.gone for breaking in masks.values())
    mask = next(mask for mask in MASKS if masks[mask].gone >= most - ENOUGH)
    return Settings(tuple(chosen), VOTES, mask), [*trials]


def _masked(held_out: HeldOut, evidence: Tensor, mask: float) -> _Breaking:
    """The effect of masking the finished latents where the evidence is over `mask`."""
    count = len(evidence)
    smooth = irece.smoothed(evidence, torch.full((count,), SMOOTHING))
    masks = irece.mask_of(smooth, torch.full((count,), mask))
    kind = torch.zeros(count, dtype=torch.long)
    instead = irece.replaced(held_out.latents, held_out.latents, masks, kind)
    latents = torch.where(masks[:, None] > 0, instead, held_out.latents)
    return _Breaking(float(held_out.gone(latents).float().mean()), float(masks.mean()))


@dataclass(frozen=True)
class TrialImages:
    """The images that the search generates: prompt i has the seed `seed + i`."""

    image_model: ImageModel
    prompts: Sequence[str]
    steps: int
    guidance: float
    seed: int

    @torch.no_grad()
    def generate(self, guard: FittedGuard | None) -> tuple[Tensor, Tensor, float]:
        """Finished latents, masks `[images, ...]`, and how many steps were written per image."""
        family = self.image_model.family
        stacks = ImageStacks(latents=(irece.stack([guard], family.device),) if guard else ())
        rows = [RowGuard(guard.name, guard.number("threshold"), 1.0)] if guard else []
        engine = DiffusionEngine(family, stacks, capacity=BATCH, forward=None)
        starts = [
            ImageStart(
                text, seed=self.seed + i, steps=self.steps, guidance=self.guidance, guards=rows
            )
            for i, text in enumerate(self.prompts)
        ]
        latents, masks, written = [], [], 0
        try:
            for first in range(0, len(starts), BATCH):
                engine.start(starts[first : first + BATCH])
                while not (complete := engine.step()):
                    pass
                latents.append(engine.finished(complete).cpu())
                none = torch.zeros_like(latents[0][0, 0])
                masks += [engine.masks(row).get(_TRIAL, none).cpu() for row in complete]
                written += sum(
                    reading.steps for row in complete for reading in engine.readings(row).values()
                )
                engine.reset()
        finally:
            engine.close()
        return torch.cat(latents), torch.stack(masks), written / len(self.prompts)


def search_replacement(
    images: TrialImages,
    held_out: HeldOut,
    settings: Settings,
    probes: Sequence[AttentionProbe],
    windows: Sequence[tuple[float, int]],
    *,
    progress: Stages,
) -> tuple[Settings, list[JsonValue]]:
    """Settings with the replacement and the first inspection, and all trials.

    `images` have prompts of the first of `held_out.folds`. They are generated under a guard of the
    other folds' classifiers, and judged by the classifier of that fold. `windows` are levels and
    numbers of inspections, the earliest first. Among settings that take the concept out equally
    well, the one with the least change outside of its masks is chosen.
    """
    fold = held_out.folds[0]
    judge, others = held_out.members[fold], held_out.others(fold)
    bare, _, _ = images.generate(None)
    variants = [
        replace(settings, replacement=kind, level=min(1.0, level + 1e-3), looks=inspections)
        for kind in irece.REPLACEMENTS
        for level, inspections in {windows[0], windows[len(windows) // 2], windows[-1]}
    ]
    variants.sort(key=lambda v: (irece.REPLACEMENTS.index(v.replacement), -v.looks))
    advance = progress("breaking the concept", len(variants))
    trials: list[dict[str, Any]] = []
    for variant in variants:
        guard = _guard(variant, others, probes, held_out.threshold)
        latents, masks, written = images.generate(guard)
        with torch.no_grad():
            gone = judge(latents.float())[:, 0] <= held_out.threshold
        outside = (1 - masks)[:, None].expand_as(latents)
        change = ((latents - bare) ** 2 * outside).sum() / outside.sum().clamp(min=1)
        trials.append(
            {
                "replacement": variant.replacement,
                "level": variant.level,
                "looks": variant.looks,
                "gone": float(gone.float().mean()),
                "area": float(masks.mean()),
                "steps": written,
                "change_outside": float(change / bare.var()),
            }
        )
        advance(1)
    most = max(trial["gone"] for trial in trials)
    equal = [i for i, trial in enumerate(trials) if trial["gone"] >= most - ENOUGH]
    return variants[min(equal, key=lambda i: trials[i]["change_outside"])], [*trials]


def _guard(
    settings: Settings,
    members: Sequence[LatentClassifiers],
    probes: Sequence[AttentionProbe],
    threshold: float,
) -> FittedGuard:
    named = [[probe.layer, probe.head] for probe in probes]
    return FittedGuard(
        _TRIAL,
        guard_tensors(stacked(members), probes),
        {**settings.as_dict(), "reads": named, "threshold": threshold},
    )


def guard_tensors(members: LatentClassifiers, probes: Sequence[AttentionProbe]) -> dict[str, Any]:
    """The tensors of an artifact by name, NumPy arrays."""
    keys = {f"keys{i}.attention": probe.keys.cpu().numpy() for i, probe in enumerate(probes)}
    others = {f"others{i}.attention": probe.others.cpu().numpy() for i, probe in enumerate(probes)}
    return classifier_tensors(members) | keys | others
