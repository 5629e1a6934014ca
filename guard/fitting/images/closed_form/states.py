"""The inputs of a model's text projections for pairs of prompts, in groups of layers that read the
same.

Where these inputs depend on the image and the step too (in joint attention), they are recorded at
each step of a short trajectory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from guard.models.images import BATCH, ImageModel, TextStates

STEPS = 4
"""Steps of the trajectory on which inputs that depend on the step are recorded."""

Groups = Mapping[str, Sequence[str]]
"""Layers with the same input, by the name of their group."""


@dataclass(frozen=True)
class Tokens:
    """The real tokens of some prompts: their states `[n, in]`, float64, and which of them are the
    last of their prompt, the encoder's end mark, `[n]`."""

    states: Tensor
    last: Tensor


@dataclass(frozen=True)
class ReplacedTokens(Tokens):
    """With the states `[n, in]` of their counterparts in the prompts that replace them."""

    stead: Tensor


class PromptStates:
    """Records what the projections of a model read. Raises ValueError for projections that cannot
    be overlaid."""

    def __init__(self, image_model: ImageModel) -> None:
        self._image_model = image_model
        first, second = image_model.text_states([""], steps=STEPS, evaluations=2)
        groups: dict[str, list[str]] = {}
        for name, states in first.states.items():
            known = (g for g, names in groups.items() if _same(first.states[names[0]], states))
            groups.setdefault(next(known, str(len(groups))), []).append(name)
        self.groups: Groups = groups
        self.widths = {g: first.states[names[0]].shape[-1] for g, names in groups.items()}
        still = all(_same(states, second.states[name]) for name, states in first.states.items())
        self._evaluations = 1 if still else STEPS
        self._layers = tuple(first.states)
        self._stream = self._encoded_stream(first) if still else None

    def replaced(
        self, prompts: Sequence[str], steads: Sequence[str]
    ) -> Iterator[tuple[int, Mapping[str, ReplacedTokens]]]:
        """The tokens of `prompts` with their counterparts in `steads`, by group, in batches; the
        number of prompts that each batch completes comes first."""
        known = list(dict.fromkeys(steads))
        others = self._gathered(known)
        rows = torch.tensor([known.index(stead) for stead in steads])
        first = 0
        for recording in self._recordings(prompts):
            other = others[recording.evaluation].select(rows[first : first + recording.rows])
            real = torch.cat(recording.masks, 1)
            positions = _positions(recording, other)
            ends = torch.cat([_ends(mask) for mask in recording.masks], 1)[real]
            by_group = {}
            for group, names in self.groups.items():
                states, stead = recording.states[names[0]], other.states[names[0]]
                chosen = torch.gather(
                    stead, 1, positions[..., None].expand(*positions.shape, stead.shape[-1])
                )
                by_group[group] = ReplacedTokens(states[real].double(), ends, chosen[real].double())
            completed = recording.evaluation == self._evaluations - 1
            first += recording.rows if completed else 0
            yield recording.rows if completed else 0, by_group

    def tokens(self, prompts: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Tokens]]]:
        """The tokens of `prompts` by group, in batches as those of `replaced`."""
        for recording in self._recordings(prompts):
            real = torch.cat(recording.masks, 1)
            ends = torch.cat([_ends(mask) for mask in recording.masks], 1)[real]
            by_group = {
                group: Tokens(recording.states[names[0]][real].double(), ends)
                for group, names in self.groups.items()
            }
            completed = recording.evaluation == self._evaluations - 1
            yield recording.rows if completed else 0, by_group

    def _gathered(self, prompts: Sequence[str]) -> list[TextStates]:
        """The recordings of all `prompts`, by evaluation, of one layer a group."""
        parts = list(self._recordings(prompts))
        layers = [names[0] for names in self.groups.values()]
        return [
            _joined([part for part in parts if part.evaluation == evaluation], layers)
            for evaluation in range(self._evaluations)
        ]

    def _recordings(self, prompts: Sequence[str]) -> Iterator[TextStates]:
        model = self._image_model
        if self._stream is None:
            yield from model.text_states(prompts, steps=STEPS, evaluations=self._evaluations)
            return
        for start in range(0, len(prompts), BATCH):
            text = model.encode(prompts[start : start + BATCH])
            states = dict.fromkeys(self._layers, text.states[self._stream])
            yield TextStates(0, states, model.family.text_masks(text))

    def _encoded_stream(self, recording: TextStates) -> str | None:
        """The encoder's stream that all projections read as it is, if there is one: its states then
        come without running the denoiser."""
        encoded = self._image_model.encode([""])
        for name, states in encoded.states.items():
            if all(_same(read.cpu(), states) for read in recording.states.values()):
                return name
        return None


def counterparts(mask: Tensor, instead: Tensor) -> Tensor:
    """For each real token of `mask [rows, tokens]` the position of its replacement, 0 for padding:
    `[rows, tokens]`.

    `instead [rows, other tokens]` marks the real tokens of the prompt that replaces each row. A
    token maps to the token at its position, those past its end to the last one; the last token (the
    encoder's end mark) to the last.
    """
    order = mask.cumsum(1) - 1
    last = (instead.sum(1, keepdim=True) - 1).clamp(min=0)
    rank = torch.where(_ends(mask), last, torch.minimum(order.clamp(min=0), last))
    # the real tokens first, in their order
    places = (~instead).to(torch.int8).argsort(dim=1, stable=True)
    return torch.where(mask, places.gather(1, rank), 0)


def _ends(mask: Tensor) -> Tensor:
    """`[rows, tokens]`: the last real token of each row."""
    return mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))


def _positions(recording: TextStates, instead: TextStates) -> Tensor:
    """The position in `instead` of each token's counterpart, `[prompts, tokens]`."""
    before = accumulate((mask.shape[1] for mask in instead.masks), initial=0)
    return torch.cat(
        [
            counterparts(mask, other) + first
            for mask, other, first in zip(recording.masks, instead.masks, before, strict=False)
        ],
        1,
    )


def _joined(parts: Sequence[TextStates], layers: Sequence[str]) -> TextStates:
    return replace(
        parts[0],
        states={name: torch.cat([part.states[name] for part in parts]) for name in layers},
        masks=tuple(map(torch.cat, zip(*(part.masks for part in parts), strict=True))),
    )


def _same(first: Tensor, second: Tensor) -> bool:
    return first is second or torch.equal(first, second)
