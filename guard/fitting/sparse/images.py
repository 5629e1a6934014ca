"""Fitting guards that take sparse features of a concept out of the states of a text encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.fitting.images.training_free import EncodedConcept, perhaps_gated
from guard.fitting.prompts.rates import PromptRates
from guard.fitting.sparse.selection import existing, importance, most_telling, trained
from guard.fitting.sparse.training import Training
from guard.reporting.progress import Stages
from steering.images.conditioning import Conditioning

if TYPE_CHECKING:  # it loads diffusers, which nothing here needs
    from guard.models.images import ImageModel


@dataclass(frozen=True)
class SparsePromptFit:
    """What is asked for: the `autoencoder` file, which is trained where there is none, and must
    have been trained with the settings that are `given`; `erased` features at most in each stream,
    taken out `strength` times."""

    autoencoder: Path
    erased: int = 16
    strength: float = 1.0
    training: Training = field(default_factory=Training)
    given: frozenset[str] = frozenset()


def fit_sparse_prompt(
    image_model: ImageModel,
    concept: Concept,
    encoded: EncodedConcept,
    rates: PromptRates,
    request: SparsePromptFit,
    progress: Stages,
    *,
    gated: bool = True,
) -> Artifact:
    """The features that tell prompts with the concept from those of the same form without it.

    Raises DataError where no feature does, or if the held-out prompts are too few for the rates;
    and as `existing` and `trained`.
    """
    model = image_model.fitted_model()
    found = existing(request.autoencoder, model, request.training, request.given)
    about, others = _tokens(encoded.unsafe), _tokens(encoded.safe)
    if found is None:
        every = {name: torch.cat([states, others[name]]) for name, states in about.items()}
        found = trained(request.autoencoder, model, every, request.training, progress)
    found.require_places(about, request.autoencoder)
    tensors: dict[str, Any] = {}
    chosen = {}
    for name, states in about.items():
        autoencoder = found.by_place[name]
        scores = importance(autoencoder, states, others[name])
        best = most_telling(scores, request.erased, f"stream {name}")
        parts = autoencoder.chosen(best).parts
        for kind, tensor in zip(("reads", "offsets", "cuts", "writes"), parts, strict=True):
            tensors[f"{kind}.{name}"] = tensor.numpy()
        chosen[name] = best.tolist()
    settings = {
        "streams": list(about),
        "strength": request.strength,
        "features": chosen,
        "autoencoder": {name: found.about.figures.get(name, {}) for name in about},
    }
    return perhaps_gated(
        "sparse-prompt",
        "embedding",
        model,
        concept,
        encoded if gated else None,
        rates,
        tensors,
        settings,
    )


def _tokens(text: Conditioning) -> dict[str, Tensor]:
    """Stream → the states of all real tokens, `[n, width]`, float32 on the CPU."""
    return {name: states[text.masks[name]].float().cpu() for name, states in text.states.items()}
