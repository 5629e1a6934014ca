"""Fitting guards without training: subspaces and linear scores in closed form.

For SAFREE, nearest-safe projection, safe latent diffusion and the negative prompt, a few phrases of
the concept are encoded. Prompts made from them give the direction of the score, and held-out
prompts its threshold.
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
from guard.fitting.judgement import HeldOut
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.rates import Calibrated, PromptRates, by_kind, calibrated, figures
from guard.reporting.progress import Stages
from steering.images.conditioning import Conditioning
from steering.methods import METHODS
from steering.methods.contrastive import Contrast
from steering.methods.fitted import FittedGuard
from steering.methods.prompt_score import discriminant
from steering.methods.safe_guidance import PRESETS
from steering.methods.subspaces import pooled, principal

if TYPE_CHECKING:  # it loads diffusers, which nothing here needs
    from guard.models.images import ImageModel

SHRINKAGE = 0.3
"""γ of the linear score: of 0.03 to 3, the one with the highest recall at 1 % false positives."""

FULL = 0.25
"""The share of a concept's prompts whose erasure may be partial, by SPM's transport."""

# the weight of SAFREE's projection at the mean score of prompts with the concept
_WEIGHT_LOGIT = 3.0

Tensors = dict[str, Any]


@dataclass(frozen=True)
class EncodedConcept:
    """Conditionings of a concept's prompts.

    `phrases` are the training phrases by themselves; `unsafe` and `safe` are the prompts of the
    train split, `held_out` those of the validation split, of the given `kinds` and `texts`.
    """

    phrases: Conditioning
    unsafe: Conditioning
    safe: Conditioning
    held_out: Conditioning
    kinds: Sequence[str]
    texts: Sequence[str] = ()


def encode_concept(
    image_model: ImageModel, concept: Concept, prompts: Sequence[LabelledPrompt], progress: Stages
) -> EncodedConcept:
    """Encode the prompts of a fit. Raises DataError without unsafe or without safe prompts."""
    train = [prompt for prompt in prompts if prompt.split == "train"]
    held_out = [prompt for prompt in prompts if prompt.split != "train"]
    unsafe = [prompt.text for prompt in train if prompt.unsafe]
    safe = [prompt.text for prompt in train if not prompt.unsafe]
    if not unsafe or not safe:
        raise DataError("the train split has no unsafe or no safe prompts: add some")
    return EncodedConcept(
        phrases=image_model.encode(concept.phrases.train, progress),
        unsafe=image_model.encode(unsafe, progress),
        safe=image_model.encode(safe, progress),
        held_out=image_model.encode([prompt.text for prompt in held_out], progress),
        kinds=[prompt.kind for prompt in held_out],
        texts=[prompt.text for prompt in held_out],
    )


def fit_safree(
    image_model: ImageModel,
    concept: Concept,
    encoded: EncodedConcept,
    rates: PromptRates,
    *,
    rank: int,
    sense_rank: int,
    alpha: float,
) -> Artifact:
    """A SAFREE guard; its filter's sigmoid is centred between the scores with and without the
    concept.

    Raises DataError if these scores do not differ, or if the held-out prompts are too few for the
    rates.
    """
    if all(states.shape[1] == 1 for states in encoded.phrases.states.values()):
        raise DataError("SAFREE needs an encoder with token states: this one has pooled ones only")
    bases, centres = subspaces(encoded, rank)
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
    with_it, without = (float(screen.sense(text).mean()) for text in (encoded.unsafe, encoded.safe))
    if not with_it > without:
        raise DataError("the concept's prompts lie no nearer to its subspace than safe ones")
    settings["middle"] = (with_it + without) / 2.0
    settings["slope"] = 2.0 * _WEIGHT_LOGIT / (with_it - without)
    model = image_model.fitted_model()
    return _gated("safree", "embedding", model, concept, encoded, rates, tensors, settings)


def fit_nearest(
    image_model: ImageModel,
    concept: Concept,
    encoded: EncodedConcept,
    rates: PromptRates,
    *,
    rank: int,
    anchors: int,
    seed: int,
) -> Artifact:
    """A nearest-safe guard. Raises DataError if the held-out prompts are too few for the rates."""
    bases, _ = subspaces(encoded, rank)
    stored = {
        stream: _anchors(states, encoded.safe.masks[stream], anchors, seed)
        for stream, states in encoded.safe.states.items()
    }
    weights, bias = linear_score(encoded)
    tensors = _named("basis", bases) | _named("anchors", stored) | weights
    settings = {"streams": list(bases), "strength": 1.0, "bias": bias}
    model = image_model.fitted_model()
    return _gated("nearest", "embedding", model, concept, encoded, rates, tensors, settings)


def fit_guide(
    image_model: ImageModel,
    concept: Concept,
    encoded: EncodedConcept | None,
    rates: PromptRates,
    *,
    method: str,
    phrase: str,
    preset: str | None = None,
) -> Artifact:
    """Safe guidance or a negative prompt away from `phrase`; it has a gate with `encoded`."""
    text = image_model.encode([phrase])
    tensors = _named("concept", {name: states[0].float() for name, states in text.states.items()})
    tensors |= _named("mask", {name: mask[0].float() for name, mask in text.masks.items()})
    settings: dict[str, Any] = {"streams": list(text.states), "strength": 1.0, "phrase": phrase}
    if preset is not None:
        settings |= asdict(PRESETS[preset]) | {"preset": preset}
    model = image_model.fitted_model()
    return perhaps_gated(method, "guidance", model, concept, encoded, rates, tensors, settings)


def fit_contrastive(
    image_model: ImageModel,
    concept: Concept,
    encoded: EncodedConcept | None,
    rates: PromptRates,
    *,
    phrase: str,
    counterpart: str,
    contrast: Contrast,
    preset: str,
) -> Artifact:
    """Contrastive guidance from `phrase`, to `counterpart` where the contrast is `paired`; it has a
    gate with `encoded`."""
    text = image_model.encode([phrase, counterpart])
    tensors: Tensors = {}
    for row, (states, mask) in enumerate(
        (("concept", "mask"), ("counterpart", "counterpart_mask"))[: 1 + contrast.paired]
    ):
        tensors |= _named(states, {name: rows[row].float() for name, rows in text.states.items()})
        tensors |= _named(mask, {name: rows[row].float() for name, rows in text.masks.items()})
    settings: dict[str, Any] = {
        "streams": list(text.states),
        "strength": 1.0,
        "phrase": phrase,
        "counterpart": counterpart if contrast.paired else None,
        "preset": preset,
        "weight": contrast.weight,
        "sigma_low": contrast.low,
        "sigma_high": contrast.high,
        "paired": contrast.paired,
    }
    model = image_model.fitted_model()
    return perhaps_gated(
        "contrastive", "guidance", model, concept, encoded, rates, tensors, settings
    )


def perhaps_gated(
    method: str,
    seam: str,
    model: FittedModel,
    concept: Concept,
    encoded: EncodedConcept | None,
    rates: PromptRates,
    tensors: Tensors,
    settings: dict[str, Any],
) -> Artifact:
    """The artifact of a method without a gate: with `encoded` a linear score and its threshold are
    added, otherwise the guard acts on every image."""
    settings = settings | {"gated": False, "bias": 0.0}
    ungated = _artifact(method, seam, model, concept, tensors, settings, 0.0, {})
    return ungated if encoded is None else with_gate(ungated, concept, encoded, rates)


def with_gate(
    ungated: Artifact, concept: Concept, encoded: EncodedConcept, rates: PromptRates
) -> Artifact:
    """An ungated guard with a linear score of the prompt and its threshold added. Raises DataError
    if unsafe and safe prompts do not differ, or the held-out ones are too few for the rates."""
    meta = ungated.meta
    weights, bias = linear_score(encoded)
    settings = {**meta.settings, "gated": True, "bias": bias}
    tensors = {**ungated.tensors, **weights}
    (seam,) = meta.seams
    return _gated(meta.method, seam, meta.model, concept, encoded, rates, tensors, settings)


def with_transport(gated: Artifact, encoded: EncodedConcept) -> Artifact:
    """A gated overlay whose strength follows the prompt's score (`steering/methods/gated_overlays`)
    up to `FULL` of the concept's prompts: the others are erased at its whole strength."""
    meta = gated.meta
    screen = METHODS[meta.method].stacked([FittedGuard("fit", gated.tensors, meta.settings)], "cpu")
    full = float(screen.sense(encoded.unsafe)[:, 0].quantile(FULL))
    settings = {**meta.settings, "full_score": full}
    return Artifact(meta.model_copy(update={"settings": settings}), gated.tensors)


def held_out_of(artifact: Artifact, encoded: EncodedConcept | None) -> Calibrated:
    """A fitted guard with the held-out prompts that its threshold comes from; with none where it
    has no gate."""
    if encoded is None:
        return Calibrated(artifact, {})
    settings = artifact.meta.settings
    guard = FittedGuard("fit", artifact.tensors, settings)
    screen = METHODS[artifact.meta.method].stacked([guard], "cpu")
    scores = screen.sense(encoded.held_out)[:, 0].tolist()
    threshold = float(str(settings["threshold"]))
    prompts = HeldOut.of(threshold, encoded.texts, encoded.kinds, scores)
    return Calibrated(artifact, by_kind(scores, encoded.kinds), prompts)


def subspaces(encoded: EncodedConcept, rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For each stream, a basis `[rank, width]` of the phrases and the mean of the safe prompts."""
    bases, centres = {}, {}
    for stream, states in encoded.phrases.states.items():
        centres[stream] = pooled(encoded.safe.states[stream], encoded.safe.masks[stream]).mean(0)
        phrases = pooled(states, encoded.phrases.masks[stream]) - centres[stream]
        bases[stream] = principal(phrases, rank)
    return bases, centres


def linear_score(encoded: EncodedConcept) -> tuple[Tensors, float]:
    """Weights by stream, and the bias, of the linear score; it is the mean over the streams.

    Raises DataError if unsafe and safe prompts do not differ.
    """
    weights: dict[str, Tensor] = {}
    bias = 0.0
    streams = list(encoded.safe.states)
    for stream in streams:
        unsafe, safe = (
            pooled(text.states[stream], text.masks[stream])
            for text in (encoded.unsafe, encoded.safe)
        )
        try:
            direction, offset = discriminant(unsafe, safe, SHRINKAGE)
        except ValueError as error:
            raise DataError(f"stream {stream}: {error}") from error
        weights[stream] = direction / len(streams)
        bias += offset / len(streams)
    return _named("weights", weights), bias


def _anchors(states: Tensor, mask: Tensor, count: int, seed: int) -> Tensor:
    """At most `count` states `[n, width]` of real tokens, sampled from all prompts."""
    real = states[mask].float()
    generator = torch.Generator().manual_seed(seed)
    return real[torch.randperm(len(real), generator=generator)[:count]]


def _named(kind: str, by_stream: Mapping[str, Tensor]) -> Tensors:
    return {f"{kind}.{stream}": tensor.numpy() for stream, tensor in by_stream.items()}


def _gated(
    method: str,
    seam: str,
    model: FittedModel,
    concept: Concept,
    encoded: EncodedConcept,
    rates: PromptRates,
    tensors: Tensors,
    settings: dict[str, Any],
) -> Artifact:
    """The artifact, with the threshold that keeps the rates on the held-out prompts."""
    screen = METHODS[method].stacked([FittedGuard("fit", tensors, settings)], "cpu")
    scores = by_kind(screen.sense(encoded.held_out)[:, 0].tolist(), encoded.kinds)
    threshold = calibrated(scores, rates)
    calibration = figures(scores, threshold, rates)
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
