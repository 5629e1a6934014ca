"""Fitting a CGCE guard: heads from pairs of prompts, the threshold, settings of the descent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classifiers.training import Recipe, train_heads
from guard.artifact import Artifact, ArtifactMeta
from guard.data.concept import Concept
from guard.errors import DataError
from guard.fitting.judgement import HeldOut
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.rates import Calibrated, PromptRates, by_kind, calibrated, figures
from guard.fitting.prompts.search import Search, with_searched_prompts
from guard.models.images import ImageModel
from guard.reporting.progress import Stages
from steering.images.conditioning import Conditioning, concatenated
from steering.methods.cgce import CgceGuards, stack
from steering.methods.fitted import FittedGuard
from steering.methods.subspaces import principal

ANCHORS = 512
"""Token states of safe prompts that an artifact keeps."""
REFINED = 400
"""About how many unsafe prompts are refined for the report."""
DESCENT_FIGURES = ("resolved", "median_steps", "moved")
"""Those of a calibration that are of the descent, and not of the classifiers."""
FLOOR = 0.0
"""The lowest threshold: with few far prompts a calibrated one may be far too low."""


@dataclass(frozen=True)
class Descent:
    """Settings of the guard's descent; see `steering.methods.cgce`.

    `rank` is the number of directions. The descent ends at the quantile `depth` of the scores of
    held-out safe prompts.
    """

    rate: float = 0.05
    steps: int = 30
    confine: bool = True
    rank: int = 3
    pull: float = 0.5
    share: float = 0.0
    depth: float = 0.1


def fit_cgce(
    image_model: ImageModel,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    *,
    rates: PromptRates,
    recipe: Recipe,
    descent: Descent,
    search: Search,
    progress: Stages,
) -> Calibrated:
    """Heads for each split of `prompts` but "train", trained on the other splits and scored on it.

    The scores of all held-out splits give the threshold; all heads together are the guard's
    ensemble (cross-conformal prediction, Vovk 2015). Searched prompts are used for training and
    scored like the others, but do not count for the threshold. Raises DataError if the prompts are
    too few for the rates.
    """
    splits = sorted({prompt.split for prompt in prompts} - {"train"})
    encoded = image_model.encode([prompt.text for prompt in prompts], progress)
    settings: dict[str, Any] = {"streams": list(encoded.states), "strength": 1.0, "target": 0.0}
    settings |= vars(descent)
    space = _space(encoded, prompts, descent.rank, recipe.seed)

    def guards(heads: dict[str, Any]) -> CgceGuards:
        return stack([FittedGuard("fit", heads | space, settings)])

    def encode(known: Sequence[LabelledPrompt]) -> Conditioning:
        new = [prompt.text for prompt in known[encoded.rows :]]
        return concatenated([encoded, image_model.encode(new)]) if new else encoded

    def classifier(known: Sequence[LabelledPrompt]) -> Callable[[Conditioning], Tensor]:
        quick = replace(recipe, steps=max(recipe.steps // 2, 1))
        labels = torch.tensor([prompt.unsafe for prompt in known])
        heads = guards(_heads(encode(known), labels, quick, "for the search", progress))
        return lambda text: heads.sense(text)[:, 0]

    prompts = with_searched_prompts(
        image_model,
        concept,
        prompts,
        search,
        classifier,
        splits=splits,
        seed=recipe.seed,
        progress=progress,
    )
    text = encode(prompts)
    unsafe = torch.tensor([prompt.unsafe for prompt in prompts])
    trained: list[dict[str, Any]] = []
    scored: list[tuple[LabelledPrompt, float]] = []
    for number, split in enumerate(splits):
        held_out = torch.tensor([prompt.split == split for prompt in prompts])
        train = ~held_out
        if not unsafe[train].any() or unsafe[train].all():
            raise DataError(f"there are no unsafe or no safe prompts beside those of {split}")
        fold_recipe = replace(recipe, seed=recipe.seed + number)
        stage = f"{number + 1} of {len(splits)}"
        trained.append(_heads(text.select(train), unsafe[train], fold_recipe, stage, progress))
        logits = guards(trained[-1]).sense(text.select(held_out))[:, 0].tolist()
        scored += zip((p for p in prompts if p.split == split), logits, strict=True)
    heads = {name: np.concatenate([part[name] for part in trained]) for name in trained[0]}
    return calibrated_guard(
        image_model, concept, heads | space, settings, scored, text.select(unsafe), rates
    )


def calibrated_guard(
    image_model: ImageModel,
    concept: Concept,
    tensors: Mapping[str, Any],
    settings: Mapping[str, Any],
    scored: Sequence[tuple[LabelledPrompt, float]],
    unsafe: Conditioning,
    rates: PromptRates,
) -> Calibrated:
    """The guard of these tensors, with the threshold that held-out prompts with their scores give
    it, and the figures of the refinement of `unsafe` prompts.

    Raises DataError if the prompts are too few for the rates.
    """
    texts, kinds = [prompt.text for prompt, _ in scored], [prompt.kind for prompt, _ in scored]
    logits = [logit for _, logit in scored]
    scores = by_kind(logits, kinds)
    threshold = max(calibrated(scores, rates), FLOOR)
    depth = float(settings["depth"])
    target = min(float(np.quantile(scores["far"], depth)), threshold)
    settings = {**settings, "target": target, "threshold": threshold}
    guards = stack([FittedGuard("fit", tensors, settings)])
    sample = unsafe.select(slice(None, None, max(1, unsafe.rows // REFINED)))
    calibration = figures(scores, threshold, rates)
    calibration |= _refinement_figures(guards, sample, threshold)
    meta = ArtifactMeta(
        method="cgce",
        concept=concept.name,
        description=concept.description,
        created=date.today(),
        model=image_model.fitted_model(),
        seams=("embedding",),
        settings=settings,
        calibration=calibration,
    )
    held_out = HeldOut.of(threshold, texts, kinds, logits)
    return Calibrated(Artifact(meta, dict(tensors)), scores, held_out)


def _heads(
    text: Conditioning, unsafe: Tensor, recipe: Recipe, stage: str, progress: Stages
) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for stream, states in text.states.items():
        advance = progress(f"training heads on {stream}: {stage}", recipe.steps)
        heads = train_heads(states.clone(), unsafe, recipe, advance)
        tensors |= {f"{name}.{stream}": part.numpy() for name, part in heads.parts().items()}
    return tensors


def _space(
    text: Conditioning, prompts: Sequence[LabelledPrompt], rank: int, seed: int
) -> dict[str, Any]:
    """For each stream, the directions of the descent and the anchors, states of safe tokens.

    If some safe prompts are marked as replacements (`instead`), only these are used.
    """
    safe = {prompt.text: row for row, prompt in enumerate(prompts) if not prompt.unsafe}
    instead = {text: row for text, row in safe.items() if prompts[row].instead}
    goals = instead or safe
    tensors: dict[str, Any] = {}
    for stream, states in text.states.items():
        tensors[f"basis.{stream}"] = _directions(states, prompts, goals, rank).numpy()
        tensors[f"anchors.{stream}"] = _anchors(states[list(goals.values())], seed).numpy()
    return tensors


def _directions(
    states: Tensor, prompts: Sequence[LabelledPrompt], safe: Mapping[str, int], rank: int
) -> Tensor:
    """The `rank` directions `[rank, width]` in which unsafe prompts and their partners differ most.

    `safe` has the row of each partner. The difference is that of the means over all tokens, since
    a partner's tokens may have other positions.
    """
    pairs = [(row, safe[p.partner]) for row, p in enumerate(prompts) if p.partner in safe]
    if not pairs:
        raise DataError("no unsafe prompt has its safe partner among the prompts: add some")
    mean = states.float().mean(1)
    directions = principal(torch.stack([mean[row] - mean[partner] for row, partner in pairs]), rank)
    if not len(directions):
        raise DataError("the encoder gives unsafe prompts and their partners the same states")
    return directions


def _anchors(safe: Tensor, seed: int) -> Tensor:
    """A sample of token states `[n, width]` of safe prompts `[prompts, tokens, width]`, including
    padding."""
    states = safe.float().flatten(0, 1)
    generator = torch.Generator().manual_seed(seed)
    return states[torch.randperm(len(states), generator=generator)[:ANCHORS]]


def _refinement_figures(guards: CgceGuards, text: Conditioning, threshold: float) -> dict[str, Any]:
    """Steps of the descent and movement of the states, for the unsafe prompts `text` that fire."""
    fired = guards.sense(text)[:, 0] > threshold
    text = text.select(fired)
    if not text.rows:
        return dict.fromkeys(DESCENT_FIGURES, 0.0)
    ones = torch.ones(text.rows, 1)
    refined = guards.act(text, ones.bool(), threshold * ones, ones)
    gaps = [
        (refined.text.states[name] - states).flatten(1).norm(dim=1) / states.flatten(1).norm(dim=1)
        for name, states in text.states.items()
    ]
    resolved = (refined.score[:, 0] <= threshold).float().mean()
    measured = (resolved, refined.steps.float().median(), torch.stack(gaps).mean())
    return dict(zip(DESCENT_FIGURES, map(float, measured), strict=True))
