"""Fitting a CGCE guard: heads from pairs of prompts, thresholds, and how it descends."""

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
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.rates import Calibrated, by_kind, calibrated, figures
from guard.fitting.prompts.search import Search, searched
from guard.models.images import ImageModel
from guard.reporting.progress import Stages
from steering.images.conditioning import Conditioning, concatenated
from steering.methods.cgce import CgceGuards, stack
from steering.methods.fitted import FittedGuard
from steering.methods.subspaces import principal

ANCHORS = 512
"""Token states of safe prompts that an artifact keeps."""
REFINED = 400
"""About how many unsafe prompts are refined to report how far that goes."""
FLOOR = 0.0
"""No threshold is under it: on few far prompts a calibrated one may be next to nothing."""


@dataclass(frozen=True)
class Descent:
    """How the guard descends; see `steering.methods.cgce`.

    `rank` is the number of directions, and `depth` says how far down to go: to that quantile of
    what held-out safe prompts score.
    """

    rate: float = 0.05
    steps: int = 30
    confine: bool = True
    rank: int = 3
    pull: float = 0.5
    share: float = 0.0
    depth: float = 0.1


def fit_cgce(
    painter: ImageModel,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    *,
    fpr: float,
    near_fpr: float,
    recipe: Recipe,
    descent: Descent,
    search: Search,
    progress: Stages,
) -> Calibrated:
    """Heads for each split of `prompts` but "train", taught all but that split and scored on it.

    The scores of all held-out splits give the threshold; all heads together are the guard's
    ensemble (cross-conformal prediction, Vovk 2015). Searched prompts are taught and scored as the
    others are, but have no say in the threshold. Raises DataError where the prompts do not do for
    the rates that are asked for.
    """
    splits = sorted({prompt.split for prompt in prompts} - {"train"})
    first = painter.read([prompt.text for prompt in prompts], progress)
    settings: dict[str, Any] = {"streams": list(first.states), "strength": 1.0} | vars(descent)
    space = _space(first, prompts, descent.rank, recipe.seed)

    def screen(heads: dict[str, Any], target: float = 0.0) -> CgceGuards:
        return stack([FittedGuard("fit", heads | space, settings | {"target": target})])

    def read(known: Sequence[LabelledPrompt]) -> Conditioning:
        more = [prompt.text for prompt in known[first.rows :]]
        return concatenated([first, painter.read(more)]) if more else first

    def classifier(known: Sequence[LabelledPrompt]) -> Callable[[Conditioning], Tensor]:
        quick = replace(recipe, steps=max(recipe.steps // 2, 1))
        labels = torch.tensor([prompt.unsafe for prompt in known])
        heads = screen(_heads(read(known), labels, quick, "for the search", progress))
        return lambda text: heads.sense(text)[:, 0]

    prompts = searched(
        painter,
        concept,
        prompts,
        search,
        classifier,
        splits=splits,
        seed=recipe.seed,
        progress=progress,
    )
    text = read(prompts)
    unsafe = torch.tensor([prompt.unsafe for prompt in prompts])
    taught, kinds, held_out = [], [], []
    for number, split in enumerate(splits):
        out = torch.tensor([prompt.split == split for prompt in prompts])
        if not unsafe[~out].any() or unsafe[~out].all():
            raise DataError(f"there are no unsafe or no safe prompts beside those of {split}")
        own = replace(recipe, seed=recipe.seed + number)
        what = f"{number + 1} of {len(splits)}"
        taught.append(_heads(text.select(~out), unsafe[~out], own, what, progress))
        held_out += screen(taught[-1]).sense(text.select(out))[:, 0].tolist()
        kinds += [prompt.kind for prompt in prompts if prompt.split == split]
    scores = by_kind(held_out, kinds)
    threshold = max(calibrated(scores, fpr, near_fpr), FLOOR)
    settings["target"] = min(float(np.quantile(scores["far"], descent.depth)), threshold)
    heads = {name: np.concatenate([part[name] for part in taught]) for name in taught[0]}
    asked = unsafe.nonzero()[:, 0]
    due = text.select(asked[:: max(1, len(asked) // REFINED)])
    calibration = figures(scores, threshold, fpr, near_fpr)
    calibration |= _descended(screen(heads, settings["target"]), due, threshold)
    meta = ArtifactMeta(
        method="cgce",
        concept=concept.name,
        description=concept.description,
        created=date.today(),
        model=painter.fitted_model(),
        seams=("embedding",),
        settings=settings | {"threshold": threshold},
        calibration=calibration,
    )
    return Calibrated(Artifact(meta, heads | space), scores)


def _heads(
    text: Conditioning, unsafe: Tensor, recipe: Recipe, what: str, progress: Stages
) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for stream, states in text.states.items():
        advance = progress(f"training heads on {stream}: {what}", recipe.steps)
        heads = train_heads(states.clone(), unsafe, recipe, advance)
        tensors |= {f"{name}.{stream}": part.numpy() for name, part in heads.parts().items()}
    return tensors


def _space(
    text: Conditioning, prompts: Sequence[LabelledPrompt], rank: int, seed: int
) -> dict[str, Any]:
    """For each stream, where the guard may go: directions and safe tokens.

    Where some safe prompts show what is to be drawn instead, these alone say where.
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

    Partners are those in `safe`, which tells the row of each. Of the mean over all tokens, since a
    partner's tokens need not stand where the prompt's stand.
    """
    pairs = [(row, safe[p.partner]) for row, p in enumerate(prompts) if p.partner in safe]
    if not pairs:
        raise DataError("no unsafe prompt has its safe partner beside it")
    mean = states.float().mean(1)
    found = principal(torch.stack([mean[row] - mean[partner] for row, partner in pairs]), rank)
    if not len(found):
        raise DataError("the encoder says the same of unsafe prompts and of their partners")
    return found


def _anchors(safe: Tensor, seed: int) -> Tensor:
    """Some token states `[n, width]` of safe prompts `[prompts, tokens, width]`, padding too."""
    every = safe.float().flatten(0, 1)
    draw = torch.Generator().manual_seed(seed)
    return every[torch.randperm(len(every), generator=draw)[:ANCHORS]]


def _descended(screen: CgceGuards, text: Conditioning, threshold: float) -> dict[str, Any]:
    """Steps and how far the states move, on unsafe prompts `text` that fire."""
    fired = screen.sense(text)[:, 0] > threshold
    text = text.select(fired)
    if not text.rows:
        return {"resolved": 0.0, "median_steps": 0.0, "moved": 0.0}
    one = torch.ones(text.rows, 1)
    acted = screen.act(text, one.bool(), threshold * one, one)
    gaps = [
        (acted.text.states[name] - states).flatten(1).norm(dim=1) / states.flatten(1).norm(dim=1)
        for name, states in text.states.items()
    ]
    return {
        "resolved": float((acted.score[:, 0] <= threshold).float().mean()),
        "median_steps": float(acted.steps.float().median()),
        "moved": float(torch.stack(gaps).mean()),
    }
