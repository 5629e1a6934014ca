"""Fitting UCE: a closed-form edit of the denoiser's text projections, as a low-rank overlay.

The edit uses the inputs of the projections. Where these depend on the image and the step too (in
joint attention), they are recorded at each step of a short trajectory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.errors import DataError, ModelError
from guard.fitting.images.training_free import EncodedConcept, perhaps_gated
from guard.fitting.prompts.concept_prompts import COMPANIONS
from guard.fitting.prompts.rates import PromptRates
from guard.reporting.progress import Stages
from steering.engines.diffusion.seams.projections import text_projections
from steering.methods.uce import Moments, counterparts, low_rank

if TYPE_CHECKING:  # it loads diffusers, which nothing here needs
    from guard.models.images import ImageModel, TextStates

STEPS = 4
"""Steps of the trajectory on which inputs that depend on the step are recorded."""

Groups = Mapping[str, Sequence[str]]
"""Layers with the same input, by the name of their group."""


@dataclass(frozen=True)
class EditRequest:
    """Settings of an edit: `instead` replaces the concept ("" for nothing); `keep` is λ1, `ridge`
    λ2, and `rank` the largest rank of the overlay."""

    instead: str = ""
    keep: float = 0.1
    ridge: float = 0.1
    rank: int = 64


def fit_uce(
    image_model: ImageModel,
    concept: Concept,
    encoded: EncodedConcept | None,
    rates: PromptRates,
    edit: EditRequest,
    progress: Stages,
) -> Artifact:
    """A UCE guard; it has a gate if `encoded` is given.

    Raises ModelError if the model's projections cannot be overlaid, DataError if the edit would
    change nothing or the held-out prompts are too few for the rates.
    """
    try:
        layers = text_projections(image_model.family.cross_attention())
    except ValueError as error:
        raise ModelError(f"model {image_model.name!r}: {error}") from error
    states = _States(image_model, edit.instead)
    moments = states.moments(concept.phrases.train, kept_prompts(concept), progress)
    tensors: dict[str, Any] = {}
    shares = []
    for group, sums in moments.items():
        try:
            lift, reads, share = low_rank(sums, keep=edit.keep, ridge=edit.ridge, rank=edit.rank)
        except ValueError as error:
            raise DataError(f"{error}: give another --instead than {edit.instead!r}") from error
        shares.append(share)
        tensors[f"reads.{group}"] = reads.float().numpy()
        for name in states.groups[group]:
            writes = (layers[name].weight.detach().cpu().double() @ lift).T
            tensors[f"writes.{name}"] = writes.float().numpy()
    settings: dict[str, Any] = {
        "strength": 1.0,
        "streams": list(image_model.encode([""]).states),
        "groups": {group: list(names) for group, names in states.groups.items()},
        "instead": edit.instead,
        "keep": edit.keep,
        "ridge": edit.ridge,
        "share": min(shares),
        # the edit is one of their outputs
        "encoders": image_model.fitted_model().fingerprint,
    }
    model = image_model.fitted_denoiser()
    return perhaps_gated("uce", "projection", model, concept, encoded, rates, tensors, settings)


def kept_prompts(concept: Concept) -> list[str]:
    """Prompts whose images must stay: everything that a concept file lists beside the concept, some
    other things, and the empty prompt."""
    known = ("", *concept.replacements, *concept.hard_negatives, *concept.companions, *COMPANIONS)
    return list(dict.fromkeys(known))


class _States:
    """The inputs of a model's projections, with the layers in groups of the same input."""

    def __init__(self, image_model: ImageModel, instead: str) -> None:
        self._image_model = image_model
        first, second = image_model.text_states([instead], steps=STEPS, evaluations=2)
        groups: dict[str, list[str]] = {}
        for name, states in first.states.items():
            known = (g for g, names in groups.items() if _same(first.states[names[0]], states))
            groups.setdefault(next(known, str(len(groups))), []).append(name)
        self.groups: Groups = groups
        still = all(_same(states, second.states[name]) for name, states in first.states.items())
        self._evaluations = 1 if still else STEPS
        self._instead = list(self._recordings([instead]))

    def _recordings(self, prompts: Sequence[str]) -> Iterator[TextStates]:
        evaluations = self._evaluations
        return self._image_model.text_states(prompts, steps=STEPS, evaluations=evaluations)

    def moments(
        self, erased: Sequence[str], kept: Sequence[str], progress: Stages
    ) -> dict[str, Moments]:
        """The sums over the real tokens of these prompts, by group, on the CPU."""
        widths = {
            g: self._instead[0].states[names[0]].shape[-1] for g, names in self.groups.items()
        }
        sums = {
            group: Moments(*torch.zeros(3, width, width, dtype=torch.float64))
            for group, width in widths.items()
        }
        advance = progress("recording states", len(erased) + len(kept))
        for prompts, is_kept in ((erased, False), (kept, True)):
            for recording in self._recordings(prompts):
                self._add(sums, recording, is_kept)
                advance(0 if recording.evaluation else len(recording.masks[0]))
        return sums

    def _add(self, sums: Mapping[str, Moments], recording: TextStates, is_kept: bool) -> None:
        real = torch.cat(recording.masks, 1)
        instead = self._instead[recording.evaluation]
        positions = None if is_kept else _positions(recording, instead)
        for group, names in self.groups.items():
            states, moments = recording.states[names[0]], sums[group]
            chosen = states[real].double()
            if positions is None:
                moments.kept.add_((chosen.T @ chosen).cpu())
                continue
            moments.erased.add_((chosen.T @ chosen).cpu())
            stead = instead.states[names[0]][0][positions[real]].double()
            moments.moved.add_(((stead - chosen).T @ chosen).cpu())


def _positions(recording: TextStates, instead: TextStates) -> Tensor:
    """The position in `instead` of each token's counterpart, `[prompts, tokens]`."""
    ends = accumulate(mask.shape[1] for mask in recording.masks)
    return torch.cat(
        [
            counterparts(mask, other[0]) + end - mask.shape[1]
            for mask, other, end in zip(recording.masks, instead.masks, ends, strict=True)
        ],
        1,
    )


def _same(first: Tensor, second: Tensor) -> bool:
    return first is second or torch.equal(first, second)
