"""Fitting a classifier of finished latents, on images that the model generates."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch

from classifiers.latents import LatentClassifiers, LatentRecipe, stacked, train_latents
from guard.artifact import Artifact, ArtifactMeta
from guard.data.concept import Concept
from guard.errors import DataError
from guard.fitting.judgement import HeldOut
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.likeness import DRAWN, UNDRAWN, Likeness, likeness_of
from guard.fitting.prompts.rates import (
    Calibrated,
    PromptRates,
    by_kind,
    calibrated,
    figures,
    require_enough,
)
from guard.models.images import ImageModel
from guard.reporting.progress import Stages

_BATCH = 48
"""Prompts whose likeness is computed together."""


@dataclass(frozen=True)
class TrainingImages:
    """The images of a fit: at most `count` with the concept, twice as many without it, and half
    as many of hard negatives. With `bf16` the denoiser runs in bfloat16 while prompts are chosen.
    """

    count: int
    steps: int
    guidance: float
    bf16: bool = False

    @classmethod
    def of(
        cls,
        image_model: ImageModel,
        count: int,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        bf16: bool = False,
    ) -> TrainingImages:
        """With the pipeline's own number of steps and guidance scale in place of None."""
        default_steps, default_guidance = image_model.family.defaults
        return cls(
            count=count,
            steps=default_steps if steps is None else steps,
            guidance=default_guidance if guidance is None else guidance,
            bf16=bf16,
        )

    @property
    def wanted(self) -> dict[str, int]:
        """Images by kind of prompt."""
        return wanted(self.count)


def wanted(count: int) -> dict[str, int]:
    """Images by kind of prompt, of a fit with `count` of the concept. Far prompts are the most: the
    rarest false alarm counts."""
    return {"unsafe": count, "far": 2 * count, "near": count // 2}


def require_images(
    prompts: Sequence[LabelledPrompt], count: int, rates: PromptRates, given: int = 0
) -> None:
    """Raise DataError if images of these prompts, and `given` ones without the concept, would be
    too few for the rates, whatever the denoiser says of the prompts."""
    have = Counter(prompt.kind for prompt in prompts)
    most = Counter({kind: min(have[kind], number) for kind, number in wanted(count).items()})
    require_enough(most + Counter(far=given), rates)


def require_sure(chosen: Sequence[LabelledPrompt], rates: PromptRates, given: int = 0) -> None:
    """Raise DataError if the prompts that the denoiser is sure of, and `given` images without the
    concept, are too few for the rates or for the classifiers, before images are generated."""
    for split in {prompt.split for prompt in chosen}:
        if {prompt.unsafe for prompt in chosen if prompt.split != split} != {True, False}:
            raise DataError(
                "the prompts are not sufficient: a classifier needs images with the concept and "
                "images without it: add prompts of the missing kind"
            )
    require_enough(Counter(prompt.kind for prompt in chosen) + Counter(far=given), rates)


def fit_latents(
    image_model: ImageModel,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    images: TrainingImages,
    *,
    rates: PromptRates,
    recipe: LatentRecipe,
    seed: int,
    progress: Stages,
    sure: bool = False,
) -> Calibrated:
    """One classifier per split of `prompts`, trained on the other splits and scored on its own.

    The label of an image is that of its prompt. Since not every prompt that names the concept shows
    it, only prompts that the denoiser is sure of are used (`guard.fitting.prompts.likeness`); with
    `sure` these are `prompts`, as `sure_prompts` has chosen them. The
    scores of all held-out images give the threshold; all classifiers together are the guard
    (cross-conformal prediction, Vovk 2015). Raises DataError if the prompts are too few for the
    rates.
    """
    chosen = (
        prompts if sure else sure_prompts(image_model, concept, prompts, images, seed, progress)
    )
    require_sure(chosen, rates)
    texts = [prompt.text for prompt in chosen]
    latents = image_model.generate_latents(
        texts,
        steps=images.steps,
        guidance=images.guidance,
        seed=seed,
        advance=progress("generating images", len(texts)),
    )
    if not latents.isfinite().all():
        raise DataError("the model's images are not finite: try another dtype")
    splits = sorted({prompt.split for prompt in chosen})
    parts = torch.tensor([splits.index(prompt.split) for prompt in chosen])
    unsafe = torch.tensor([prompt.unsafe for prompt in chosen])
    advance = progress("training classifiers", len(splits))
    members, logits = [], torch.zeros(len(latents))
    for part in range(len(splits)):
        train, held_out = parts != part, parts == part
        try:
            members.append(train_latents(latents[train], unsafe[train], recipe, seed=seed + part))
        except ValueError as error:
            raise DataError(f"the prompts are not sufficient: {error}") from error
        with torch.no_grad():
            logits[held_out] = members[-1](latents[held_out].float())[:, 0]
        advance(1)
    kinds = [prompt.kind for prompt in chosen]
    scores = by_kind(logits.tolist(), kinds)
    threshold = calibrated(scores, rates)
    meta = ArtifactMeta(
        method="latents",
        concept=concept.name,
        description=concept.description,
        created=date.today(),
        model=image_model.fitted_autoencoder(),
        seams=("latent",),
        settings={"threshold": threshold, "steps": images.steps, "guidance": images.guidance},
        calibration=figures(scores, threshold, rates),
    )
    return Calibrated(
        Artifact(meta, classifier_tensors(stacked(members))),
        scores,
        HeldOut.of(threshold, texts, kinds, logits.tolist()),
    )


def sure_prompts(
    image_model: ImageModel,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    images: TrainingImages,
    seed: int,
    progress: Stages,
) -> list[LabelledPrompt]:
    """The prompts whose label the denoiser is sure of: of each kind at most as many as wanted.

    They keep their order. Raises DataError if the denoiser is sure of none.
    """
    likeness = likeness_of(image_model, concept, prompts, seed=seed, bf16=images.bf16)
    advance = progress("choosing prompts", sum(images.wanted.values()))
    order = random.Random(seed).sample(range(len(prompts)), len(prompts))
    chosen: list[int] = []
    for kind, wanted in images.wanted.items():
        candidates = [index for index in order if prompts[index].kind == kind]
        sure: list[int] = []
        for part in _parts(candidates, _BATCH):
            before = len(sure)
            sure += _sure(image_model, likeness, prompts, part)
            advance(min(len(sure), wanted) - min(before, wanted))
            if len(sure) >= wanted:
                break
        advance(max(0, wanted - len(sure)))  # no more candidates
        chosen += sure[:wanted]
    if not chosen:
        raise DataError(
            "the denoiser is sure of no prompt: it does not know the concept, or its predictions "
            "are not finite: try another concept or another dtype"
        )
    return [prompts[index] for index in sorted(chosen)]


def _sure(
    image_model: ImageModel,
    likeness: Likeness,
    prompts: Sequence[LabelledPrompt],
    part: Sequence[int],
) -> list[int]:
    """The indices in `part` of prompts for which the denoiser confirms the label."""
    alike = likeness(image_model.encode([prompts[index].text for index in part])).tolist()
    return [
        index
        for index, value in zip(part, alike, strict=True)
        if (value >= DRAWN if prompts[index].unsafe else value <= UNDRAWN)
    ]


def _parts(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def classifier_tensors(members: LatentClassifiers) -> dict[str, Any]:
    """The tensors of an artifact by name, NumPy arrays."""
    weights = {f"weight{i}.latents": weight.numpy() for i, weight in enumerate(members.weights)}
    return weights | {f"bias{i}.latents": bias.numpy() for i, bias in enumerate(members.biases)}
