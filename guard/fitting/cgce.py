"""Fitting a CGCE guard: heads from pairs of prompts, thresholds, and how it descends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classifiers.training import Recipe, train_heads
from guard.artifact import Artifact, ArtifactMeta
from guard.concept import Concept
from guard.errors import DataError
from guard.fitting.concept_prompts import LabelledPrompt
from guard.fitting.prompt_rates import by_kind, calibrated, figures
from guard.painter import Painter
from guard.progress import Stages
from steering.conditioning import Conditioning
from steering.methods.cgce import CgceScreen, stack
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
    pull: float = 0.5
    share: float = 0.0
    depth: float = 0.5


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
    settings: dict[str, Any] = {"streams": list(text.states), "strength": 1.0} | vars(descent)
    space = _space(text, prompts, descent.rank, recipe.seed)

    def trained(rows: Tensor, what: str) -> dict[str, Any]:
        return _heads(text.select(rows), unsafe[rows], recipe, what, progress) | space

    def screen(tensors: dict[str, Any], target: float) -> CgceScreen:
        return stack([EmbeddingGuard("fit", tensors, settings | {"target": target})])

    tensors = trained(train, "to be calibrated")
    held = text.select(~train)
    kinds = [prompt.kind for prompt in prompts if prompt.split != "train"]
    scores = by_kind(screen(tensors, 0.0).sense(held)[:, 0].tolist(), kinds)
    threshold = max(calibrated(scores, fpr, near_fpr), FLOOR)
    settings["target"] = min(float(np.quantile(scores["far"], descent.depth)), threshold)
    due = held.select(torch.tensor([kind == "unsafe" for kind in kinds]))
    calibration = figures(scores, threshold, fpr, near_fpr)
    calibration |= _descended(screen(tensors, settings["target"]), due, threshold)
    # what is shipped has seen both splits: held-out phrases teach it more than they could prove
    tensors = trained(torch.ones_like(train), "on both splits")
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
    text: Conditioning, unsafe: Tensor, recipe: Recipe, what: str, progress: Stages
) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for stream, states in text.states.items():
        advance = progress(f"training heads on {stream}, {what}", recipe.steps)
        heads = train_heads(states.clone(), unsafe, recipe, advance)
        tensors |= {f"{name}.{stream}": part.numpy() for name, part in heads.parts().items()}
    return tensors


def _space(
    text: Conditioning, prompts: Sequence[LabelledPrompt], rank: int, seed: int
) -> dict[str, Any]:
    """For each stream, where the guard may go: directions and safe tokens."""
    safe = torch.tensor([p.split == "train" and not p.unsafe for p in prompts])
    tensors: dict[str, Any] = {}
    for stream, states in text.states.items():
        tensors[f"basis.{stream}"] = _directions(states, prompts, rank).numpy()
        tensors[f"anchors.{stream}"] = _anchors(states[safe], seed).numpy()
    return tensors


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


def _descended(screen: CgceScreen, text: Conditioning, threshold: float) -> dict[str, Any]:
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
