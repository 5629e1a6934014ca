"""What of IRECE is searched for: where to read attention, how much to mask, what to put there.

The judge is always a classifier that was not taught the image: a concept is *gone* where that one
scores the broken image under the guard's threshold. How much of the image had to be written
over for it is the price.
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
from guard.fitting.images.recording import AT_ONCE
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
"""Weight of the classifiers' votes beside one read. Not searched for: most images of a fit show
one object, where a head for any object does as well as one for the concept. On scenes with true
boxes and two objects, heads that were chosen without the votes often took the other one.
"""
SMOOTHING = 0.09
"""In shares of the image's side: about a quarter of an object in a scene of two or three."""
ENOUGH = 0.02
"""What counts as no worse, of shares of images in which the concept is gone."""


@dataclass(frozen=True)
class Settings:
    """As the artifact has them; `reads` are numbers of those that were tried."""

    reads: tuple[int, ...]
    votes: float
    mask: float
    smoothing: float = SMOOTHING
    replacement: str = "background"
    level: float = 1.0
    looks: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Without the reads, which an artifact names."""
        return {name: value for name, value in asdict(self).items() if name != "reads"}


@dataclass(frozen=True)
class HeldOut:
    """Finished latents `[images, channels, ...]` that show the concept, each read's map of them
    `[images, reads, ...]`, the classifiers of all folds, and which fold an image is of."""

    latents: Tensor
    maps: Tensor
    members: Sequence[LatentClassifiers]
    parts: Tensor
    threshold: float

    @torch.no_grad()
    def gone(self, latents: Tensor) -> Tensor:
        """`[images]`: whether the member that was not taught an image no longer finds it."""
        said = torch.zeros(len(latents))
        for part in self.shown:
            own = self.parts == part
            said[own] = self.members[part](latents[own].float())[:, 0]
        return said <= self.threshold

    @property
    def shown(self) -> list[int]:
        """The folds that have images here, those with the most of them first."""
        counts = torch.bincount(self.parts, minlength=len(self.members)).tolist()
        order = sorted(range(len(counts)), key=lambda part: -counts[part])
        return [part for part in order if counts[part]]

    @torch.no_grad()
    def votes(self) -> Tensor:
        """Maps of the votes of the members that were taught an image, as the guard has them."""
        found = torch.zeros(len(self.latents), *self.latents.shape[2:])
        for part in self.shown:
            own = self.parts == part
            votes = stacked(self.others(part)).votes(self.latents[own].float()).mean(1)
            found[own] = irece.votes_map(votes, self.latents.shape[2:])
        return found

    def others(self, part: int) -> list[LatentClassifiers]:
        """The members that were taught the images of `part`."""
        return [member for i, member in enumerate(self.members) if i != part]


def place(held: HeldOut, named: Sequence[tuple[str, int]]) -> tuple[Settings, list[JsonValue]]:
    """Reads and mask, and what was tried on the way.

    Reads are added to the votes one by one, as long as that helps: the one with which masks make
    most images lose the concept, and write over least.
    """
    tried: list[dict[str, Any]] = []
    votes = held.votes()

    def trial(reads: Sequence[int], weight: float, mask: float) -> tuple[float, float]:
        evidence = weight * votes + held.maps[:, list(reads)].sum(1)
        return _broken(held, evidence, mask)

    def note(reads: Sequence[int], weight: float, mask: float, found: tuple[float, float]) -> None:
        tried.append(
            {
                "reads": [list(named[i]) for i in reads],
                "votes": weight,
                "mask": mask,
                "gone": found[0],
                "area": found[1],
            }
        )

    middle = MASKS[2]
    chosen: list[int] = []
    best = trial(chosen, VOTES, middle)
    note(chosen, VOTES, middle, best)
    while len(chosen) < min(MOST_READS, len(named)):
        each = {i: trial([*chosen, i], VOTES, middle) for i in range(len(named)) if i not in chosen}
        top = max(each, key=lambda i: _worth(each[i]))
        if _worth(each[top]) <= _worth(best) + ENOUGH / 2:
            break
        chosen.append(top)
        best = each[top]
        note(chosen, VOTES, middle, best)
    if chosen:
        note(chosen, 0.0, middle, trial(chosen, 0.0, middle))
    masks = {mask: trial(chosen, VOTES, mask) for mask in MASKS}
    for mask, found in masks.items():
        note(chosen, VOTES, mask, found)
    most = max(found[0] for found in masks.values())
    mask = next(each for each in MASKS if masks[each][0] >= most - ENOUGH)
    return Settings(tuple(chosen), VOTES, mask), [*tried]


def _broken(held: HeldOut, evidence: Tensor, mask: float) -> tuple[float, float]:
    """In how many images the concept is gone when the finished latents are written over, and the
    share of the image that takes."""
    count = len(evidence)
    smooth = irece.smoothed(evidence, torch.full((count,), SMOOTHING))
    masks = irece.mask_of(smooth, torch.full((count,), mask))
    kind = torch.zeros(count, dtype=torch.long)
    instead = irece.replaced(held.latents, held.latents, masks, kind)
    written = torch.where(masks[:, None] > 0, instead, held.latents)
    return float(held.gone(written).float().mean()), float(masks.mean())


def _worth(found: tuple[float, float]) -> float:
    """An image that has lost the concept counts for as much as the whole area of one."""
    gone, area = found
    return gone - area


def break_(
    painter: ImageModel,
    held: HeldOut,
    settings: Settings,
    reads: Sequence[AttentionProbe],
    prompts: Sequence[str],
    windows: Sequence[tuple[float, int]],
    *,
    steps: int,
    guidance: float,
    seed: int,
    progress: Stages,
) -> tuple[Settings, list[JsonValue]]:
    """The replacement and the first look, by drawing `prompts` of the first fold of `held.shown`
    under a guard of the other folds' members, which the member of that fold judges.

    `windows` are levels and numbers of looks, the earliest first. Of those that are no
    worse, the one that changes least outside of its masks is taken.
    """
    judge = held.shown[0]
    member, others = held.members[judge], held.others(judge)
    bare, _, _ = _drawn(painter, prompts, None, steps, guidance, seed)
    variants = [
        replace(settings, replacement=kind, level=min(1.0, level + 1e-3), looks=looks)
        for kind in irece.REPLACEMENTS
        for level, looks in {windows[0], windows[len(windows) // 2], windows[-1]}
    ]
    variants.sort(key=lambda each: (irece.REPLACEMENTS.index(each.replacement), -each.looks))
    advance = progress("breaking the concept", len(variants))
    tried: list[dict[str, Any]] = []
    for each in variants:
        guard = _guard(each, others, reads, held.threshold)
        latents, masks, steps_taken = _drawn(painter, prompts, guard, steps, guidance, seed)
        with torch.no_grad():
            gone = member(latents.float())[:, 0] <= held.threshold
        outside = (1 - masks)[:, None].expand_as(latents)
        change = ((latents - bare) ** 2 * outside).sum() / outside.sum().clamp(min=1)
        tried.append(
            {
                "replacement": each.replacement,
                "level": each.level,
                "looks": each.looks,
                "gone": float(gone.float().mean()),
                "area": float(masks.mean()),
                "steps": steps_taken,
                "change_outside": float(change / bare.var()),
            }
        )
        advance(1)
    most = max(found["gone"] for found in tried)
    among = [i for i, found in enumerate(tried) if found["gone"] >= most - ENOUGH]
    return variants[min(among, key=lambda i: tried[i]["change_outside"])], [*tried]


def _guard(
    settings: Settings,
    members: Sequence[LatentClassifiers],
    reads: Sequence[AttentionProbe],
    threshold: float,
) -> FittedGuard:
    named = [[read.layer, read.head] for read in reads]
    return FittedGuard(
        _TRIAL,
        guard_tensors(stacked(members), reads),
        {**settings.as_dict(), "reads": named, "threshold": threshold},
    )


def guard_tensors(members: LatentClassifiers, reads: Sequence[AttentionProbe]) -> dict[str, Any]:
    """As an artifact holds them, NumPy arrays by name."""
    keys = {f"keys{i}.attention": read.keys.cpu().numpy() for i, read in enumerate(reads)}
    others = {f"others{i}.attention": read.others.cpu().numpy() for i, read in enumerate(reads)}
    return classifier_tensors(members) | keys | others


@torch.no_grad()
def _drawn(
    painter: ImageModel,
    prompts: Sequence[str],
    guard: FittedGuard | None,
    steps: int,
    guidance: float,
    seed: int,
) -> tuple[Tensor, Tensor, float]:
    """Finished latents, what was written over `[images, ...]`, and the steps that took."""
    erasers = [irece.stack([guard], painter.family.device)] if guard else []
    rows = [RowGuard(guard.name, guard.number("threshold"), 1.0)] if guard else []
    engine = DiffusionEngine(
        painter.family, ImageStacks(latents=tuple(erasers)), capacity=AT_ONCE, forward=None
    )
    starts = [
        ImageStart(text, seed=seed + i, steps=steps, guidance=guidance, guards=rows)
        for i, text in enumerate(prompts)
    ]
    latents, masks, taken = [], [], 0
    try:
        for first in range(0, len(starts), AT_ONCE):
            engine.start(starts[first : first + AT_ONCE])
            while not (complete := engine.step()):
                pass
            latents.append(engine.finished(complete).cpu())
            none = torch.zeros_like(latents[0][0, 0])
            masks += [engine.masks(row).get(_TRIAL, none).cpu() for row in complete]
            taken += sum(told.steps for row in complete for told in engine.readings(row).values())
            engine.reset()
    finally:
        engine.close()
    return torch.cat(latents), torch.stack(masks), taken / len(prompts)
