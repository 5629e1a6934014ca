"""Fitting a classifier of latents: the model draws the concept and what is not the concept."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch

from classifiers.latents import LatentClassifiers, LatentRecipe, stacked, train_latents
from guard.artifact import Artifact, ArtifactMeta
from guard.data.concept import Concept
from guard.errors import DataError
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.likeness import DRAWN, UNDRAWN, Likeness, likeness_of
from guard.fitting.prompts.rates import Calibrated, by_kind, calibrated, figures
from guard.models.images import ImageModel
from guard.reporting.progress import Stages

_AT_ONCE = 48
"""Prompts that are asked about before it is looked whether there are enough."""


@dataclass(frozen=True)
class TrainingImages:
    """The images of a fit: at most `count` with the concept, twice as many without it, and half
    as many of hard negatives. `bf16` computes the denoiser in bfloat16 while prompts are chosen.
    """

    count: int
    steps: int
    guidance: float
    bf16: bool = False

    @property
    def wanted(self) -> dict[str, int]:
        """By kind of prompt. Of far ones it takes many: the rarest false alarm counts."""
        return {"unsafe": self.count, "far": 2 * self.count, "near": self.count // 2}


def fit_latents(
    painter: ImageModel,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    drawing: TrainingImages,
    *,
    fpr: float,
    near_fpr: float,
    recipe: LatentRecipe,
    seed: int,
    progress: Stages,
) -> Calibrated:
    """A classifier for each split of `prompts`, taught all images but its own, scored on these.

    The labels are those of the prompts, and only such prompts are drawn as the denoiser is sure of
    (`guard.fitting.prompts.likeness`): not every prompt that names the concept shows it, and one
    that the denoiser takes for the concept does. The scores of all held-out images give the
    threshold; all classifiers together are the guard (cross-conformal prediction, Vovk 2015).
    Raises DataError where the prompts do not do for the rates that are asked for.
    """
    chosen = drawable(painter, concept, prompts, drawing, seed, progress)
    texts = [prompt.text for prompt in chosen]
    latents = painter.draw(
        texts,
        steps=drawing.steps,
        guidance=drawing.guidance,
        seed=seed,
        tick=progress("drawing images", len(texts)),
    )
    if not latents.isfinite().all():
        raise DataError("the model draws images that are not finite: another dtype may help")
    splits = sorted({prompt.split for prompt in chosen})
    parts = torch.tensor([splits.index(prompt.split) for prompt in chosen])
    unsafe = torch.tensor([prompt.unsafe for prompt in chosen])
    advance = progress("training classifiers", len(splits))
    members, held_out = [], torch.zeros(len(latents))
    for part in range(len(splits)):
        others, own = parts != part, parts == part
        try:
            members.append(train_latents(latents[others], unsafe[others], recipe, seed=seed + part))
        except ValueError as error:
            raise DataError(f"the prompts do not do: {error}") from error
        with torch.no_grad():
            held_out[own] = members[-1](latents[own].float())[:, 0]
        advance(1)
    scores = by_kind(held_out.tolist(), [prompt.kind for prompt in chosen])
    threshold = calibrated(scores, fpr, near_fpr)
    meta = ArtifactMeta(
        method="latents",
        concept=concept.name,
        description=concept.description,
        created=date.today(),
        model=painter.fitted_autoencoder(),
        seams=("latent",),
        settings={"threshold": threshold, "steps": drawing.steps, "guidance": drawing.guidance},
        calibration=figures(scores, threshold, fpr, near_fpr),
    )
    return Calibrated(Artifact(meta, classifier_tensors(stacked(members))), scores)


def drawable(
    painter: ImageModel,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    drawing: TrainingImages,
    seed: int,
    progress: Stages,
) -> list[LabelledPrompt]:
    """The prompts to draw, of each kind as many as are wanted if there are so many, by split.

    Raises DataError where the denoiser is sure of none.
    """
    likeness = likeness_of(painter, concept, prompts, seed=seed, bf16=drawing.bf16)
    advance = progress("choosing prompts", sum(drawing.wanted.values()))
    order = random.Random(seed).sample(range(len(prompts)), len(prompts))
    found: list[int] = []
    for kind, wanted in drawing.wanted.items():
        candidates = [at for at in order if prompts[at].kind == kind]
        sure: list[int] = []
        for part in _parts(candidates, _AT_ONCE):
            before = len(sure)
            sure += _sure(painter, likeness, prompts, part)
            advance(min(len(sure), wanted) - min(before, wanted))
            if len(sure) >= wanted:
                break
        advance(max(0, wanted - len(sure)))  # there are no more
        found += sure[:wanted]
    if not found:
        raise DataError(
            "the denoiser is sure of no prompt: it does not know the concept, or its predictions "
            "are not finite, where another dtype may help"
        )
    return [prompts[at] for at in sorted(found)]


def _sure(
    painter: ImageModel, likeness: Likeness, prompts: Sequence[LabelledPrompt], part: Sequence[int]
) -> list[int]:
    """Those of `part` under which the denoiser draws what their label says."""
    alike = likeness(painter.read([prompts[at].text for at in part])).tolist()
    return [
        at
        for at, value in zip(part, alike, strict=True)
        if (value >= DRAWN if prompts[at].unsafe else value <= UNDRAWN)
    ]


def _parts(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def classifier_tensors(members: LatentClassifiers) -> dict[str, Any]:
    """As an artifact holds them, NumPy arrays by name."""
    weights = {f"weight{i}.latents": weight.numpy() for i, weight in enumerate(members.weights)}
    return weights | {f"bias{i}.latents": bias.numpy() for i, bias in enumerate(members.biases)}
