"""Fitting IRECE: a guard that finds a concept in the latents and breaks it there.

The model generates images with and without the concept, as for a classifier of finished latents
(`guard.fitting.images.latents`), and their trajectories are recorded. Every choice is made on
images that the judging classifier was not trained on.
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
from guard.fitting.images.latents import TrainingImages, require_sure, sure_prompts
from guard.fitting.images.recording import RecordedTrajectory, record_trajectories
from guard.fitting.images.reference_images import ReferenceImages, reference_estimates
from guard.fitting.judgement import HeldOut
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.rates import (
    Calibrated,
    PromptRates,
    by_kind,
    calibrated,
    figures,
)
from guard.models.images import ImageModel
from guard.reporting.progress import Stages
from steering.engines.diffusion.sampling.estimates import estimates_of
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.engines.diffusion.seams.attention import text_keys
from steering.images.latent import AttentionProbe, InspectionSchedule

EARLIEST = 0.95
"""The largest noise level of an inspection: above it there is no image yet."""


@dataclass(frozen=True)
class _Presence:
    """Classifiers of the estimates, one per fold, and held-out logits `[images, inspections]`."""

    members: list[LatentClassifiers]
    logits: Tensor


def fit_irece(
    image_model: ImageModel,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    images: TrainingImages,
    *,
    inspections: int,
    trials: int,
    rates: PromptRates,
    recipe: LatentRecipe,
    seed: int,
    progress: Stages,
    references: ReferenceImages | None = None,
    sure: bool = False,
) -> Calibrated:
    """Fit with `inspections` of each image at most, and `trials` images per replacement.

    With `sure`, `prompts` are those that `sure_prompts` has chosen.

    Classifiers are trained on the `references` too, and the rate on far prompts is also kept on
    references without the concept, since an image that starts from inverted noise differs from the
    images that the model generates.

    Raises DataError if the prompts are too few for the rates, or if the model's trajectories cannot
    be recorded.
    """
    chosen = (
        [*prompts] if sure else sure_prompts(image_model, concept, prompts, images, seed, progress)
    )
    given = 0 if references is None else int((~references.shown).sum())
    require_sure(chosen, rates, given)
    steps, guidance = images.steps, images.guidance
    schedule = InspectionSchedule(EARLIEST, inspections)
    try:
        levels = _levels(image_model, schedule, steps)
        probes = _probes(image_model, concept)
    except ValueError as error:
        raise DataError(f"the model's trajectories cannot be recorded: {error}") from error

    def record(
        part: Sequence[int], probes: Sequence[AttentionProbe], stage: str
    ) -> RecordedTrajectory:
        return record_trajectories(
            image_model,
            [chosen[i].text for i in part],
            schedule,
            probes,
            steps=steps,
            guidance=guidance,
            seed=seed + (part[0] if part else 0),
            advance=progress(stage, len(part)),
        )

    # one kind at a time: attention is recorded for images of the concept only
    unsafe = [i for i, prompt in enumerate(chosen) if prompt.unsafe]
    safe = [i for i, prompt in enumerate(chosen) if not prompt.unsafe]
    with_concept = record(unsafe, probes, "generating the concept")
    without = record(safe, [], "generating other images")
    chosen = [chosen[i] for i in (*unsafe, *safe)]
    estimates = torch.cat([with_concept.estimates, without.estimates])
    if not estimates.isfinite().all():
        raise DataError("the model's images are not finite: try another dtype")
    splits = sorted({prompt.split for prompt in chosen})
    parts = torch.tensor([splits.index(prompt.split) for prompt in chosen])
    label = torch.tensor([prompt.unsafe for prompt in chosen])
    kinds = [prompt.kind for prompt in chosen]
    shown = torch.zeros(0).bool()
    if references is not None:
        shown = references.shown
        reference_parts = reference_estimates(
            image_model,
            references.latents,
            schedule,
            steps=steps,
            seed=seed,
            advance=progress("noising reference images", len(shown)),
        )
        estimates = torch.cat([estimates, reference_parts])
        label = torch.cat([label, shown])
        parts = torch.cat([parts, torch.arange(len(shown)) % len(splits)])
    presence = _trained(estimates, label, parts, recipe, seed, progress)
    kinds += ["given" if concept_shown else "far" for concept_shown in shown.tolist()]
    first, windows = _first_inspection(presence.logits, kinds, rates)
    highest = presence.logits[:, first:].amax(1).tolist()
    scores = by_kind(highest, kinds)
    threshold = calibrated(scores, rates)
    held_out = irece_search.HeldOut(
        estimates[: len(unsafe), -1],
        with_concept.maps,
        presence.members,
        parts[: len(unsafe)],
        threshold,
    )
    settings, placing = irece_search.search_masks(
        held_out, [(probe.layer, probe.head) for probe in probes]
    )
    chosen_probes = [probes[i] for i in settings.reads]
    judged = held_out.folds[0]
    texts = [chosen[i].text for i in range(len(unsafe)) if parts[i] == judged][:trials]
    # the model must still fill in what was broken: the last inspection is too late to start
    last = max(first + 1, len(levels) - 1)
    settings, breaking = irece_search.search_replacement(
        irece_search.TrialImages(image_model, texts, steps, guidance, seed + 100_000),
        held_out,
        settings,
        chosen_probes,
        [(levels[start], len(levels) - start) for start in range(first, last)],
        progress=progress,
    )
    meta = ArtifactMeta(
        method="irece",
        concept=concept.name,
        description=concept.description,
        created=date.today(),
        model=image_model.fitted_pipeline(),
        seams=("attention", "latent"),
        settings={
            "threshold": threshold,
            "strength": 1.0,
            **settings.as_dict(),
            "reads": [[probe.layer, probe.head] for probe in chosen_probes],
            "steps": steps,
            "guidance": guidance,
        },
        calibration={
            **figures(scores, threshold, rates),
            "hidden": recipe.attack_radius,
            **_reference_rates(presence.logits[len(chosen) :, first:], shown, threshold),
            "windows": windows,
            "places": placing,
            "breaking": breaking,
        },
    )
    tensors = irece_search.guard_tensors(stacked(presence.members), chosen_probes)
    asked = [prompt.text for prompt in chosen]
    asked += [f"reference image {number}" for number in range(1, len(shown) + 1)]
    return Calibrated(Artifact(meta, tensors), scores, HeldOut.of(threshold, asked, kinds, highest))


def _levels(image_model: ImageModel, inspections: InspectionSchedule, steps: int) -> list[float]:
    """The noise level of each inspection."""
    family = image_model.family
    schedule = Sampler(family.scheduler, family.arrange).schedule(steps)
    tables = estimates_of(family.scheduler, schedule)
    levels = tables.level.tolist()
    return [levels[step] for step in sorted(inspections.among(levels, tables.whole.tolist()))]


def _probes(image_model: ImageModel, concept: Concept) -> list[AttentionProbe]:
    """A probe of the concept's name for every head of every readable layer."""
    family = image_model.family
    name = re.sub(r"^(a|an|the) ", "", concept.phrases.train[0])
    tokens = family.content(name)
    if not tokens.any():
        raise ValueError(f"the text encoder has no token of {name!r}")
    timestep = float(family.scheduler.config.get("num_train_timesteps", 1000)) / 2
    with torch.no_grad():
        keys = text_keys(family, family.encode([name]), timestep)
        others = text_keys(family, family.unconditional([""]), timestep)
    return [
        AttentionProbe(
            layer, head, keys[layer][tokens.to(keys[layer].device), head], others[layer][:, head]
        )
        for layer in family.readable
        for head in range(keys[layer].shape[1])
    ]


def _trained(
    estimates: Tensor,
    label: Tensor,
    parts: Tensor,
    recipe: LatentRecipe,
    seed: int,
    progress: Stages,
) -> _Presence:
    """One classifier per fold, trained on the estimates of the other folds at all inspections."""
    count, inspections = estimates.shape[:2]
    flat = estimates.flatten(0, 1)
    folds = int(parts.max()) + 1
    advance = progress("training classifiers", folds)
    members, logits = [], torch.zeros(count, inspections)
    for part in range(folds):
        held_out = parts == part
        train = (~held_out).repeat_interleave(inspections)
        labels = label.repeat_interleave(inspections)[train]
        try:
            members.append(train_latents(flat[train], labels, recipe, seed=seed + part))
        except ValueError as error:
            raise DataError(f"the prompts are not sufficient: {error}") from error
        with torch.no_grad():
            part_logits = members[-1](flat[held_out.repeat_interleave(inspections)].float())[:, 0]
        logits[held_out] = part_logits.view(-1, inspections)
        advance(1)
    return _Presence(members, logits)


def _first_inspection(
    logits: Tensor, kinds: Sequence[str], rates: PromptRates
) -> tuple[int, list[JsonValue]]:
    """The first inspection, and the figures of all candidates at the requested rates.

    The earliest one whose recall is close to the best is chosen, since the model has more steps
    left to fill in what is broken early.
    """
    windows: list[dict[str, Any]] = []
    for first in range(logits.shape[1]):
        scores = by_kind(logits[:, first:].amax(1).tolist(), kinds)
        window = figures(scores, calibrated(scores, rates), rates)
        windows.append({"first_look": first, "recall": window["recall"], "auc": window["auc"]})
    best = max(window["recall"] for window in windows)
    first = next(i for i, window in enumerate(windows) if window["recall"] >= best - 0.01)
    return first, [*windows]


def _reference_rates(logits: Tensor, shown: Tensor, threshold: float) -> dict[str, float]:
    """The shares of reference images with and without the concept that fire."""
    fires = logits.amax(1) > threshold if len(logits) else torch.zeros(0).bool()
    groups = {"given_recall": shown, "given_far_fired": ~shown}
    return {
        name: float(fires[group].float().mean()) for name, group in groups.items() if group.any()
    }
