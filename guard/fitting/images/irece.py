"""Fitting IRECE: from a concept and the model alone to a guard that finds it and breaks it.

The model draws the concept and what is not the concept, as for a classifier of finished latents
(`guard.fitting.images.latents`), and is watched on its way. Everything is chosen on images that
the classifier which judges them was not taught.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from classifiers.latents import LatentClassifiers, LatentRecipe, stacked, train_latents
from guard.artifact import Artifact, ArtifactMeta
from guard.data.concept import Concept
from guard.errors import DataError
from guard.fitting.images import irece_search
from guard.fitting.images.latents import TrainingImages, drawable
from guard.fitting.images.recording import RecordedTrajectory, watch
from guard.fitting.images.reference_images import ReferenceImages, given_estimates
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.rates import Calibrated, by_kind, calibrated, figures
from guard.models.images import ImageModel
from guard.reporting.progress import Stages
from steering.engines.diffusion.sampling.estimates import estimates_of
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.engines.diffusion.seams.attention import text_keys
from steering.images.latent import AttentionProbe, InspectionSchedule

EARLIEST = 0.95
"""The noise's share before which no look is tried: there is no image yet."""


@dataclass(frozen=True)
class _Presence:
    """Classifiers of the estimates, one a fold, and the held-out logits `[images, looks]`."""

    members: list[LatentClassifiers]
    logits: Tensor


def fit_irece(
    painter: ImageModel,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    drawing: TrainingImages,
    *,
    looks: int,
    trials: int,
    fpr: float,
    near_fpr: float,
    recipe: LatentRecipe,
    seed: int,
    progress: Stages,
    given: ReferenceImages | None = None,
) -> Calibrated:
    """`looks` at each image at most; `trials` images for each way of breaking the concept.

    Classifiers are taught the images `given` too, and the rate on far ones is kept on those
    without the concept: what comes back through inverted latents is not drawn by the model.

    Raises DataError where the prompts do not do for the rates asked for, or the model is not one
    that can be watched.
    """
    chosen = drawable(painter, concept, prompts, drawing, seed, progress)
    steps, guidance = drawing.steps, drawing.guidance
    try:
        levels = _levels(painter, InspectionSchedule(EARLIEST, looks), steps)
        reads = _reads(painter, concept)
    except ValueError as error:
        raise DataError(f"the model's images cannot be followed: {error}") from error

    def watched(
        part: Sequence[int], reads: Sequence[AttentionProbe], said: str
    ) -> RecordedTrajectory:
        return watch(
            painter,
            [chosen[i].text for i in part],
            InspectionSchedule(EARLIEST, looks),
            reads,
            steps=steps,
            guidance=guidance,
            seed=seed + (part[0] if part else 0),
            tick=progress(said, len(part)),
        )

    # prompts of one kind are drawn together: only of the concept's images places are asked for
    unsafe = [i for i, prompt in enumerate(chosen) if prompt.unsafe]
    others = [i for i, prompt in enumerate(chosen) if not prompt.unsafe]
    if not (unsafe and others):
        raise DataError(
            "the prompts do not do: a classifier is taught images with the concept and images "
            "without it"
        )
    shown, plain = (
        watched(unsafe, reads, "drawing the concept"),
        watched(others, [], "drawing else"),
    )
    chosen = [chosen[i] for i in (*unsafe, *others)]
    estimates = torch.cat([shown.estimates, plain.estimates])
    if not estimates.isfinite().all():
        raise DataError("the model draws images that are not finite: another dtype may help")
    splits = sorted({prompt.split for prompt in chosen})
    parts = torch.tensor([splits.index(prompt.split) for prompt in chosen])
    label = torch.tensor([prompt.unsafe for prompt in chosen])
    kinds = [prompt.kind for prompt in chosen]
    real = torch.zeros(0).bool()
    if given is not None:
        real = given.shown
        advance = progress("looking at given images", len(real))
        more = given_estimates(
            painter,
            given.latents,
            InspectionSchedule(EARLIEST, looks),
            steps=steps,
            seed=seed,
            tick=advance,
        )
        estimates, label = torch.cat([estimates, more]), torch.cat([label, real])
        parts = torch.cat([parts, torch.arange(len(real)) % len(splits)])
    presence = _taught(estimates, label, parts, recipe, seed, progress)
    kinds += ["given" if shown else "far" for shown in real.tolist()]
    first, window = _window(presence.logits, kinds, fpr, near_fpr)
    scores = by_kind(presence.logits[:, first:].amax(1).tolist(), kinds)
    threshold = calibrated(scores, fpr, near_fpr)
    held = irece_search.HeldOut(
        estimates[: len(unsafe), -1], shown.maps, presence.members, parts[: len(unsafe)], threshold
    )
    settings, placing = irece_search.place(held, [(read.layer, read.head) for read in reads])
    own = [reads[i] for i in settings.reads]
    judged = held.shown[0]
    texts = [chosen[i].text for i in range(len(unsafe)) if parts[i] == judged][:trials]
    settings, breaking = irece_search.break_(
        painter,
        held,
        settings,
        own,
        texts,
        # behind the first look the model has to fill in what was broken: the last one is too late
        [(levels[at], len(levels) - at) for at in range(first, max(first + 1, len(levels) - 1))],
        steps=steps,
        guidance=guidance,
        seed=seed + 100_000,
        progress=progress,
    )
    meta = ArtifactMeta(
        method="irece",
        concept=concept.name,
        description=concept.description,
        created=date.today(),
        model=painter.fitted_pipeline(),
        seams=("attention", "latent"),
        settings={
            "threshold": threshold,
            "strength": 1.0,
            **settings.as_dict(),
            "reads": [[read.layer, read.head] for read in own],
            "steps": steps,
            "guidance": guidance,
        },
        calibration={
            **figures(scores, threshold, fpr, near_fpr),
            "hidden": recipe.attack_radius,
            **_given_fired(presence.logits[len(chosen) :, first:], real, threshold),
            "windows": window,
            "places": placing,
            "breaking": breaking,
        },
    )
    return Calibrated(
        Artifact(meta, irece_search.guard_tensors(stacked(presence.members), own)), scores
    )


def _levels(painter: ImageModel, looks: InspectionSchedule, steps: int) -> list[float]:
    """The noise's share at each look."""
    family = painter.family
    schedule = Sampler(family.scheduler, family.arrange).schedule(steps)
    tables = estimates_of(family.scheduler, schedule)
    levels = tables.level.tolist()
    return [levels[at] for at in sorted(looks.among(levels, tables.whole.tolist()))]


def _reads(painter: ImageModel, concept: Concept) -> list[AttentionProbe]:
    """Every head of every layer that can be read, for the concept's name."""
    family = painter.family
    name = re.sub(r"^(a|an|the) ", "", concept.phrases.train[0])
    own = family.content(name)
    if not own.any():
        raise ValueError(f"the text encoder has no token of {name!r}")
    timestep = float(family.scheduler.config.get("num_train_timesteps", 1000)) / 2
    with torch.no_grad():
        keys = text_keys(family, family.encode([name]), timestep)
        others = text_keys(family, family.unconditional([""]), timestep)
    return [
        AttentionProbe(
            layer, head, keys[layer][own.to(keys[layer].device), head], others[layer][:, head]
        )
        for layer in family.readable
        for head in range(keys[layer].shape[1])
    ]


def _taught(
    estimates: Tensor,
    label: Tensor,
    parts: Tensor,
    recipe: LatentRecipe,
    seed: int,
    progress: Stages,
) -> _Presence:
    """One classifier a fold, taught the estimates of all looks at the others' images."""
    count, looks = estimates.shape[:2]
    every = estimates.flatten(0, 1)
    folds = int(parts.max()) + 1
    advance = progress("training classifiers", folds)
    members, logits = [], torch.zeros(count, looks)
    for part in range(folds):
        own = parts == part
        taught = (~own).repeat_interleave(looks)
        try:
            members.append(
                train_latents(
                    every[taught], label.repeat_interleave(looks)[taught], recipe, seed=seed + part
                )
            )
        except ValueError as error:
            raise DataError(f"the prompts do not do: {error}") from error
        with torch.no_grad():
            said = members[-1](every[own.repeat_interleave(looks)].float())[:, 0]
        logits[own] = said.view(-1, looks)
        advance(1)
    return _Presence(members, logits)


def _window(
    logits: Tensor, kinds: Sequence[str], fpr: float, near_fpr: float
) -> tuple[int, list[JsonValue]]:
    """The first look, and what each choice of it finds at the rates asked for.

    The earliest that finds nearly as much as the best: what is broken early, the model fills in.
    """
    tried: list[dict[str, Any]] = []
    for first in range(logits.shape[1]):
        scores = by_kind(logits[:, first:].amax(1).tolist(), kinds)
        found = figures(scores, calibrated(scores, fpr, near_fpr), fpr, near_fpr)
        tried.append({"first_look": first, "recall": found["recall"], "auc": found["auc"]})
    best = max(each["recall"] for each in tried)
    return next(i for i, each in enumerate(tried) if each["recall"] >= best - 0.01), [*tried]


def _given_fired(logits: Tensor, shown: Tensor, threshold: float) -> dict[str, float]:
    """Of given images with the concept, and of those without it, the shares that fire."""
    fires = logits.amax(1) > threshold if len(logits) else torch.zeros(0).bool()
    pairs = {"given_recall": shown, "given_far_fired": ~shown}
    return {name: float(fires[own].float().mean()) for name, own in pairs.items() if own.any()}
