"""Fitting the guards that need no training: subspaces and linear scores in closed form.

SAFREE, nearest-safe projection, safe latent diffusion, the negative prompt: a few phrases of the
concept are encoded, prompts made from them give the score's direction, held-out ones the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guard.artifact import Artifact, ArtifactMeta, FittedModel
from guard.data.concept import Concept
from guard.errors import DataError
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.rates import by_kind, calibrated, figures
from guard.reporting.progress import Stages
from steering.images.conditioning import Conditioning
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard
from steering.methods.prompt_score import discriminant
from steering.methods.safe_guidance import PRESETS
from steering.methods.subspaces import pooled, principal

if TYPE_CHECKING:  # it loads diffusers, which nothing here needs
    from guard.models.images import ImageModel

SHRINKAGE = 0.3
"""γ of the linear score: of 0.03 to 3, the one with the highest recall at 1 % false positives."""

# the weight of SAFREE's projection at the mean score of prompts with the concept
_WEIGHT_LOGIT = 3.0

Tensors = dict[str, Any]


@dataclass(frozen=True)
class Rates:
    """The false-positive rates asked for, on far prompts and on hard negatives."""

    far: float
    near: float


@dataclass(frozen=True)
class EncodedConcept:
    """A concept's prompts as the model's encoders give them.

    `phrases` are the training phrases alone; `unsafe` and `safe` come from the train split, `held`
    from the validation split with its `kinds`.
    """

    phrases: Conditioning
    unsafe: Conditioning
    safe: Conditioning
    held: Conditioning
    kinds: Sequence[str]


def read_prompts(
    painter: ImageModel, concept: Concept, prompts: Sequence[LabelledPrompt], progress: Stages
) -> EncodedConcept:
    """Encode all that a fit needs. Raises DataError where the train split has a gap."""
    train = [prompt for prompt in prompts if prompt.split == "train"]
    held = [prompt for prompt in prompts if prompt.split != "train"]
    unsafe = [prompt.text for prompt in train if prompt.unsafe]
    safe = [prompt.text for prompt in train if not prompt.unsafe]
    if not unsafe or not safe:
        raise DataError("the prompts have no unsafe or no safe ones in the train split")
    return EncodedConcept(
        phrases=painter.read(concept.phrases.train, progress),
        unsafe=painter.read(unsafe, progress),
        safe=painter.read(safe, progress),
        held=painter.read([prompt.text for prompt in held], progress),
        kinds=[prompt.kind for prompt in held],
    )


def fit_safree(
    painter: ImageModel,
    concept: Concept,
    read: EncodedConcept,
    rates: Rates,
    *,
    rank: int,
    sense_rank: int,
    alpha: float,
) -> Artifact:
    """A SAFREE guard; its filter's sigmoid stands between the scores with and without the concept.

    Raises DataError where these do not differ, or the held-out prompts do not do for the rates.
    """
    if all(states.shape[1] == 1 for states in read.phrases.states.values()):
        raise DataError("SAFREE needs an encoder with token states: this one has pooled ones only")
    bases, centres = subspaces(read, rank)
    tensors = _named("basis", bases) | _named("centre", centres)
    settings = {
        "streams": list(bases),
        "strength": 1.0,
        "alpha": alpha,
        "sense_rank": min(sense_rank, rank),
        "slope": 1.0,
        "middle": 0.0,
    }
    screen = METHODS["safree"].stacked([FittedGuard("fit", tensors, settings)], "cpu")
    with_it, without = (float(screen.sense(text).mean()) for text in (read.unsafe, read.safe))
    if not with_it > without:
        raise DataError("the concept's prompts lie no nearer to its subspace than safe ones")
    settings["middle"] = (with_it + without) / 2.0
    settings["slope"] = 2.0 * _WEIGHT_LOGIT / (with_it - without)
    model = painter.fitted_model()
    return _gated("safree", "embedding", model, concept, read, rates, tensors, settings)


def fit_nearest(
    painter: ImageModel,
    concept: Concept,
    read: EncodedConcept,
    rates: Rates,
    *,
    rank: int,
    anchors: int,
    seed: int,
) -> Artifact:
    """A nearest-safe guard. Raises DataError where the held-out prompts do not do for the rates."""
    bases, _ = subspaces(read, rank)
    stored = {
        stream: _anchors(states, read.safe.masks[stream], anchors, seed)
        for stream, states in read.safe.states.items()
    }
    weights, bias = linear_score(read)
    tensors = _named("basis", bases) | _named("anchors", stored) | weights
    settings = {"streams": list(bases), "strength": 1.0, "bias": bias}
    model = painter.fitted_model()
    return _gated("nearest", "embedding", model, concept, read, rates, tensors, settings)


def fit_guide(
    painter: ImageModel,
    concept: Concept,
    read: EncodedConcept | None,
    rates: Rates,
    *,
    method: str,
    phrase: str,
    preset: str | None = None,
) -> Artifact:
    """Safe guidance or a negative prompt away from `phrase`; without `read` it has no gate."""
    own = painter.read([phrase])
    tensors = _named("concept", {name: states[0].float() for name, states in own.states.items()})
    tensors |= _named("mask", {name: mask[0].float() for name, mask in own.masks.items()})
    settings: dict[str, Any] = {"streams": list(own.states), "strength": 1.0, "phrase": phrase}
    if preset is not None:
        settings |= asdict(PRESETS[preset]) | {"preset": preset}
    model = painter.fitted_model()
    return perhaps_gated(method, "guidance", model, concept, read, rates, tensors, settings)


def perhaps_gated(
    method: str,
    seam: str,
    model: FittedModel,
    concept: Concept,
    read: EncodedConcept | None,
    rates: Rates,
    tensors: Tensors,
    settings: dict[str, Any],
) -> Artifact:
    """The artifact of a method that has no gate of its own: a linear score with a threshold, or,
    without `read`, none, so that it acts on every image."""
    settings = settings | {"gated": read is not None, "bias": 0.0}
    if read is None:
        return _artifact(method, seam, model, concept, tensors, settings, 0.0, {})
    weights, settings["bias"] = linear_score(read)
    return _gated(method, seam, model, concept, read, rates, tensors | weights, settings)


def subspaces(read: EncodedConcept, rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For each stream a basis `[rank, width]` of the phrases, and the safe prompts' mean."""
    bases, centres = {}, {}
    for stream, states in read.phrases.states.items():
        centres[stream] = pooled(read.safe.states[stream], read.safe.masks[stream]).mean(0)
        phrases = pooled(states, read.phrases.masks[stream]) - centres[stream]
        bases[stream] = principal(phrases, rank)
    return bases, centres


def linear_score(read: EncodedConcept) -> tuple[Tensors, float]:
    """Weights by stream and the bias of the linear score, the mean over the streams.

    Raises DataError where the prompts cannot be told apart.
    """
    weights: dict[str, Tensor] = {}
    bias = 0.0
    streams = list(read.safe.states)
    for stream in streams:
        unsafe, safe = (
            pooled(text.states[stream], text.masks[stream]) for text in (read.unsafe, read.safe)
        )
        try:
            own, offset = discriminant(unsafe, safe, SHRINKAGE)
        except ValueError as error:
            raise DataError(f"stream {stream}: {error}") from error
        weights[stream] = own / len(streams)
        bias += offset / len(streams)
    return _named("weights", weights), bias


def _anchors(states: Tensor, mask: Tensor, count: int, seed: int) -> Tensor:
    """At most `count` real token states `[n, width]`, drawn over all prompts."""
    real = states[mask].float()
    draw = torch.Generator().manual_seed(seed)
    return real[torch.randperm(len(real), generator=draw)[:count]]


def _named(kind: str, by_stream: Mapping[str, Tensor]) -> Tensors:
    return {f"{kind}.{stream}": tensor.numpy() for stream, tensor in by_stream.items()}


def _gated(
    method: str,
    seam: str,
    model: FittedModel,
    concept: Concept,
    read: EncodedConcept,
    rates: Rates,
    tensors: Tensors,
    settings: dict[str, Any],
) -> Artifact:
    """The artifact, with a threshold that keeps the rates on the held-out prompts."""
    screen = METHODS[method].stacked([FittedGuard("fit", tensors, settings)], "cpu")
    scores = by_kind(screen.sense(read.held)[:, 0].tolist(), read.kinds)
    threshold = calibrated(scores, rates.far, rates.near)
    calibration = figures(scores, threshold, rates.far, rates.near)
    return _artifact(method, seam, model, concept, tensors, settings, threshold, calibration)


def _artifact(
    method: str,
    seam: str,
    model: FittedModel,
    concept: Concept,
    tensors: Tensors,
    settings: dict[str, Any],
    threshold: float,
    calibration: dict[str, Any],
) -> Artifact:
    meta = ArtifactMeta(
        method=method,
        concept=concept.name,
        description=concept.description,
        created=date.today(),
        model=model,
        seams=(seam,),
        settings=settings | {"threshold": threshold},
        calibration=calibration,
    )
    return Artifact(meta, tensors)
