"""Fitting a CGCE guard: heads from pairs of prompts, thresholds, and how it descends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classifiers.heads import Heads
from classifiers.training import Recipe, train_heads
from guard.artifact import Artifact, ArtifactMeta
from guard.concept import Concept
from guard.errors import DataError
from guard.fitting.concept_prompts import LabelledPrompt
from guard.fitting.prompt_rates import by_kind, calibrated, figures
from guard.painter import Painter
from guard.progress import Stages
from steering.conditioning import Conditioning
from steering.methods.cgce import stack
from steering.methods.embedding import EmbeddingGuard
from steering.methods.subspaces import principal

ANCHORS = 512
"""Token states of safe prompts that an artifact keeps."""
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
    pull: float = 0.3
    share: float = 0.0
    depth: float = 0.25


@dataclass(frozen=True)
class CgceFit:
    """A fitted guard with what it was judged by: scores of the validation split by kind."""

    artifact: Artifact
    scores: Mapping[str, Sequence[float]]


def fit_cgce(
    painter: Painter,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    *,
    fpr: float,
    near_fpr: float,
    recipe: Recipe,
    descent: Descent,
    progress: Stages,
) -> CgceFit:
    """Raises DataError where the prompts do not do for the rates that are asked for."""
    text = painter.read([prompt.text for prompt in prompts], progress)
    train = torch.tensor([prompt.split == "train" for prompt in prompts])
    unsafe = torch.tensor([prompt.unsafe for prompt in prompts])
    if not (train & unsafe).any() or not (train & ~unsafe).any():
        raise DataError("the pairs have no unsafe or no safe prompts in the train split")
    heads = _heads(text.select(train), unsafe[train], recipe, progress)
    tensors = {
        f"{name}.{stream}": part.numpy()
        for stream, own in heads.items()
        for name, part in own.parts().items()
    }
    for stream, states in text.states.items():
        tensors[f"basis.{stream}"] = _directions(states, prompts, descent.rank).numpy()
        tensors[f"anchors.{stream}"] = _anchors(states[train & ~unsafe], recipe.seed).numpy()
    settings: dict[str, Any] = {"streams": list(text.states), "strength": 1.0} | vars(descent)
    held = text.select(~train)
    kinds = [prompt.kind for prompt in prompts if prompt.split != "train"]
    said = stack([EmbeddingGuard("fit", tensors, settings | {"target": 0.0})]).sense(held)
    scores = by_kind(said[:, 0].tolist(), kinds)
    threshold = max(calibrated(scores, fpr, near_fpr), FLOOR)
    settings["target"] = min(float(np.quantile(scores["far"], descent.depth)), threshold)
    screen = stack([EmbeddingGuard("fit", tensors, settings)])
    due = held.select(torch.tensor([kind == "unsafe" for kind in kinds]))
    calibration = figures(scores, threshold, fpr, near_fpr) | _descended(screen, due, threshold)
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
    return CgceFit(Artifact(meta, tensors), scores)


def _heads(
    text: Conditioning, unsafe: Tensor, recipe: Recipe, progress: Stages
) -> dict[str, Heads]:
    heads = {}
    for stream, states in text.states.items():
        advance = progress(f"training heads on {stream}", recipe.steps)
        heads[stream] = train_heads(states.clone(), unsafe, recipe, advance)
    return heads


def _directions(states: Tensor, prompts: Sequence[LabelledPrompt], rank: int) -> Tensor:
    """The `rank` directions `[rank, width]` in which unsafe prompts and their partners differ most.

    Of the mean over all tokens, since a partner's tokens need not stand where the prompt's stand.
    """
    train = [(row, prompt) for row, prompt in enumerate(prompts) if prompt.split == "train"]
    safe = {prompt.text: row for row, prompt in train if not prompt.unsafe}
    pairs = [(row, safe[prompt.partner]) for row, prompt in train if prompt.partner in safe]
    if not pairs:
        raise DataError("no unsafe prompt of the train split has its safe partner beside it")
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


def _descended(screen: Any, text: Conditioning, threshold: float) -> dict[str, Any]:
    """Steps and how far the states move, on the validation split's unsafe prompts that fire."""
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
