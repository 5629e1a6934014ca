"""Fitting UCE: a closed-form edit of the denoiser's text projections, kept as a low-rank overlay.

The states are those that the projections read themselves. Where they depend on the image and the
step too (text and image attend to both), they are taken at each step of drawing it.
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
from guard.fitting.images.training_free import EncodedConcept, Rates, perhaps_gated
from guard.fitting.prompts.concept_prompts import COMPANIONS
from guard.reporting.progress import Stages
from steering.engines.diffusion.seams.projections import text_projections
from steering.methods.uce import Moments, counterparts, low_rank

if TYPE_CHECKING:  # it loads diffusers, which nothing here needs
    from guard.models.images import ImageModel, TextStates

STEPS = 4
"""Of an image on whose way states are taken that depend on the step."""

Groups = Mapping[str, Sequence[str]]
"""Layers that read the same states, by the group's name."""


@dataclass(frozen=True)
class EditRequest:
    """What an edit is to do: `instead` stands in the concept's place, "" for nothing; `keep` is λ1,
    `ridge` λ2, `rank` the overlay's at most."""

    instead: str = ""
    keep: float = 0.1
    ridge: float = 0.1
    rank: int = 64


def fit_uce(
    painter: ImageModel,
    concept: Concept,
    read: EncodedConcept | None,
    rates: Rates,
    edit: EditRequest,
    progress: Stages,
) -> Artifact:
    """A UCE guard; without `read` it has no gate.

    Raises ModelError where the model's projections cannot be overlaid, DataError where the edit
    would change nothing, or the held-out prompts do not do for the rates.
    """
    try:
        layers = text_projections(painter.family.cross_attention())
    except ValueError as error:
        raise ModelError(f"model {painter.name!r}: {error}") from error
    states = _States(painter, edit.instead)
    moments = states.moments(concept.phrases.train, kept_prompts(concept), progress)
    tensors: dict[str, Any] = {}
    shares = []
    for group, own in moments.items():
        try:
            lift, reads, share = low_rank(own, keep=edit.keep, ridge=edit.ridge, rank=edit.rank)
        except ValueError as error:
            raise DataError(f"{error}: give another --instead than {edit.instead!r}") from error
        shares.append(share)
        tensors[f"reads.{group}"] = reads.float().numpy()
        for name in states.groups[group]:
            writes = (layers[name].weight.detach().cpu().double() @ lift).T
            tensors[f"writes.{name}"] = writes.float().numpy()
    settings: dict[str, Any] = {
        "strength": 1.0,
        "streams": list(painter.read([""]).states),
        "groups": {group: list(names) for group, names in states.groups.items()},
        "instead": edit.instead,
        "keep": edit.keep,
        "ridge": edit.ridge,
        "share": min(shares),
        # it is what these say that is edited
        "encoders": painter.fitted_model().fingerprint,
    }
    model = painter.fitted_denoiser()
    return perhaps_gated("uce", "projection", model, concept, read, rates, tensors, settings)


def kept_prompts(concept: Concept) -> list[str]:
    """What is to be drawn as before: everything that a concept file says is not the concept, some
    other things, and no prompt at all."""
    known = ("", *concept.replacements, *concept.hard_negatives, *concept.companions, *COMPANIONS)
    return list(dict.fromkeys(known))


class _States:
    """The states that a model's projections read, in groups of those that read the same."""

    def __init__(self, painter: ImageModel, instead: str) -> None:
        self._painter = painter
        first, second = painter.text_states([instead], steps=STEPS, evaluations=2)
        groups: dict[str, list[str]] = {}
        for name, states in first.states.items():
            known = (g for g, names in groups.items() if _same(first.states[names[0]], states))
            groups.setdefault(next(known, str(len(groups))), []).append(name)
        self.groups: Groups = groups
        still = all(_same(states, second.states[name]) for name, states in first.states.items())
        self._evaluations = 1 if still else STEPS
        self._instead = list(self._read([instead]))

    def _read(self, prompts: Sequence[str]) -> Iterator[TextStates]:
        evaluations = self._evaluations
        return self._painter.text_states(prompts, steps=STEPS, evaluations=evaluations)

    def moments(
        self, erased: Sequence[str], kept: Sequence[str], progress: Stages
    ) -> dict[str, Moments]:
        """The sums over the real tokens of these prompts, by group, on the CPU."""
        widths = {
            g: self._instead[0].states[names[0]].shape[-1] for g, names in self.groups.items()
        }
        found = {
            group: Moments(*torch.zeros(3, width, width, dtype=torch.float64))
            for group, width in widths.items()
        }
        advance = progress("reading states", len(erased) + len(kept))
        for prompts, is_kept in ((erased, False), (kept, True)):
            for at in self._read(prompts):
                self._add(found, at, is_kept)
                advance(0 if at.evaluation else len(at.masks[0]))
        return found

    def _add(self, found: Mapping[str, Moments], at: TextStates, is_kept: bool) -> None:
        real = torch.cat(at.masks, 1)
        instead = self._instead[at.evaluation]
        places = None if is_kept else _places(at, instead)
        for group, names in self.groups.items():
            states, own = at.states[names[0]], found[group]
            chosen = states[real].double()
            if places is None:
                own.kept.add_((chosen.T @ chosen).cpu())
                continue
            own.erased.add_((chosen.T @ chosen).cpu())
            stead = instead.states[names[0]][0][places[real]].double()
            own.moved.add_(((stead - chosen).T @ chosen).cpu())


def _places(at: TextStates, instead: TextStates) -> Tensor:
    """Where in `instead` each token's counterpart stands, `[prompts, tokens]`."""
    ends = accumulate(mask.shape[1] for mask in at.masks)
    return torch.cat(
        [
            counterparts(mask, other[0]) + end - mask.shape[1]
            for mask, other, end in zip(at.masks, instead.masks, ends, strict=True)
        ],
        1,
    )


def _same(first: Tensor, second: Tensor) -> bool:
    return first is second or torch.equal(first, second)
