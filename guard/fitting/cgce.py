"""Fitting a CGCE guard: heads from pairs of prompts, thresholds, and how it descends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classifiers.calibration import auc, threshold_for
from classifiers.heads import Heads
from classifiers.training import Recipe, train_heads
from guard.artifact import Artifact, ArtifactMeta
from guard.concept import Concept
from guard.errors import DataError
from guard.fitting.concept_prompts import LabelledPrompt
from guard.painter import Painter
from guard.progress import Stages
from steering.conditioning import Conditioning
from steering.methods.cgce import stack
from steering.methods.embedding import EmbeddingGuard

ANCHORS = 16
FLOOR = 0.5
"""No threshold is under it: on few far prompts a calibrated one may be next to nothing."""


@dataclass(frozen=True)
class Descent:
    """How the guard descends; see `steering.methods.cgce`."""

    rate: float = 0.08
    target: float = 0.02
    steps: int = 30
    pull: float = 0.0
    share: float = 0.0


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
    anchors = _anchors(text.select(train & ~unsafe), recipe.seed)
    tensors = {
        f"{name}.{stream}": part.numpy()
        for stream, own in heads.items()
        for name, part in own.parts().items()
    }
    tensors |= {f"anchors.{stream}": states.numpy() for stream, states in anchors.items()}
    settings: dict[str, Any] = {"streams": list(text.states), "strength": 1.0} | vars(descent)
    screen = stack([EmbeddingGuard("fit", tensors, settings)])
    held = text.select(~train)
    kinds = [prompt.kind for prompt in prompts if prompt.split != "train"]
    said = screen.sense(held)[:, 0].tolist()
    scores = {
        kind: [score for score, own in zip(said, kinds, strict=True) if own == kind]
        for kind in ("unsafe", "near", "far")
    }
    try:
        limits = [threshold_for(scores["far"], fpr), threshold_for(scores["near"], near_fpr)]
    except ValueError as error:
        raise DataError(f"the validation split does not do: {error}") from error
    threshold = min(max(*limits, FLOOR), 0.999)
    due = held.select(torch.tensor([kind == "unsafe" for kind in kinds]))
    calibration = _figures(scores, threshold, fpr, near_fpr) | _descended(screen, due, threshold)
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


def _anchors(safe: Conditioning, seed: int) -> dict[str, Tensor]:
    """States of some safe prompts, the same ones in each stream."""
    draw = torch.Generator().manual_seed(seed)
    some = torch.randperm(safe.rows, generator=draw)[:ANCHORS]
    return {stream: states[some].float() for stream, states in safe.states.items()}


def _figures(
    scores: Mapping[str, Sequence[float]], threshold: float, fpr: float, near_fpr: float
) -> dict[str, Any]:
    over = {kind: float(np.mean(np.asarray(own) > threshold)) for kind, own in scores.items()}
    safe = [*scores["far"], *scores["near"]]
    return {
        "recall": over["unsafe"],
        "auc": auc(scores["unsafe"], safe),
        "far_fired": over["far"],
        "near_fired": over["near"],
        "false_positive_rate": fpr,
        "near_false_positive_rate": near_fpr,
        "prompts": {kind: len(own) for kind, own in scores.items()},
    }


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
