"""Penalties, biases and shortest answers: what is added to the logits of rows that ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.engines.transformers.sampling import RowSampling


@dataclass
class _Slots:
    """What the rows of a batch that are adjusted have: `[slots, vocabulary]`, or `[slots]`."""

    counts: Tensor
    """Of tokens that were generated."""
    prompt: Tensor
    """Whether the prompt has the token."""
    bias: Tensor
    ends: Tensor
    """Whether the token may not come among the first `min_tokens`."""
    frequency: Tensor
    presence: Tensor
    repetition: Tensor
    min_tokens: Tensor

    @classmethod
    def empty(cls, slots: int, vocabulary: int, device: torch.device) -> _Slots:
        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            counts=zeros(slots, vocabulary, dtype=torch.int32),
            prompt=zeros(slots, vocabulary, dtype=torch.bool),
            bias=zeros(slots, vocabulary),
            ends=zeros(slots, vocabulary, dtype=torch.bool),
            frequency=zeros(slots),
            presence=zeros(slots),
            repetition=zeros(slots),
            min_tokens=zeros(slots, dtype=torch.long),
        )

    def __len__(self) -> int:
        return len(self.counts)

    def fill(self, slot: int, sampling: RowSampling, prompt: Sequence[int]) -> None:
        for tokens in (self.counts, self.prompt, self.bias, self.ends):
            tokens[slot] = 0
        self.prompt[slot, list(prompt)] = True
        if sampling.logit_bias:
            biased, biases = zip(*sampling.logit_bias, strict=True)
            self.bias[slot, list(biased)] = torch.tensor(biases, device=self.bias.device)
        if sampling.min_tokens:
            self.ends[slot, list(sampling.ends)] = True
        self.frequency[slot] = sampling.frequency_penalty
        self.presence[slot] = sampling.presence_penalty
        self.repetition[slot] = sampling.repetition_penalty
        self.min_tokens[slot] = sampling.min_tokens

    def copy_from(self, other: _Slots) -> None:
        """Take over the slots of one that has fewer."""
        for each in fields(self):
            getattr(self, each.name)[: len(other)] = getattr(other, each.name)


class Adjustments:
    """The adjustments of up to `states` rows. Only rows that have some occupy memory: a slot each,
    of 10 bytes for every token of the vocabulary. A row that moves keeps its slot."""

    def __init__(self, states: int, vocabulary: int, device: torch.device) -> None:
        self._vocabulary, self._device = vocabulary, device
        self._slot_of = np.full(states, -1)
        """By row, -1 for none."""
        self._free: list[int] = []
        self._slots = _Slots.empty(0, vocabulary, device)

    def add(self, row: int, sampling: RowSampling, prompt: Sequence[int]) -> None:
        """Adjust the row from now on, where `sampling` asks for it."""
        self.remove(row)
        if not sampling.adjusts:
            return
        if not self._free:
            self._grow()
        slot = self._slot_of[row] = self._free.pop()
        self._slots.fill(slot, sampling, prompt)

    def move(self, source: int, target: int) -> None:
        self.remove(target)
        self._slot_of[target], self._slot_of[source] = self._slot_of[source], -1

    def remove(self, row: int) -> None:
        slot = int(self._slot_of[row])
        if slot < 0:
            return
        self._slot_of[row] = -1
        self._free.append(slot)
        if len(self._free) == len(self._slots):
            self._slots, self._free = _Slots.empty(0, self._vocabulary, self._device), []

    def apply(self, rows: NDArray[np.int64], steps: Tensor, logits: Tensor) -> Tensor:
        """The adjusted `logits [rows, vocabulary]`; the others' bits are as they were. `steps
        [rows]` are the tokens that each row has generated.

        In this order: biases; `repetition_penalty` (Keskar et al. 2019), which divides positive
        logits of tokens that have occurred and multiplies negative ones; OpenAI's frequency and
        presence penalties.
        """
        if (chosen := self._among(rows)) is None:
            return logits
        at, slots = chosen
        state = self._slots
        counts = state.counts[slots]
        generated = counts > 0
        scores = logits[at] + state.bias[slots]
        penalty = state.repetition[slots][:, None]
        repeated = torch.where(scores > 0, scores / penalty, scores * penalty)
        scores = torch.where(generated | state.prompt[slots], repeated, scores)
        scores -= state.frequency[slots][:, None] * counts
        scores -= state.presence[slots][:, None] * generated
        early = steps[at] < state.min_tokens[slots]
        scores.masked_fill_(early[:, None] & state.ends[slots], -torch.inf)
        return logits.index_copy(0, at, scores)

    def count(self, rows: NDArray[np.int64], tokens: Tensor) -> None:
        """Count the tokens `[rows]` that were generated."""
        if (chosen := self._among(rows)) is not None:
            at, slots = chosen
            self._slots.counts[slots, tokens[at]] += 1

    def withdraw(self, row: int, tokens: Sequence[int]) -> None:
        """Count these tokens of the row no more."""
        if (slot := self._slot_of[row]) >= 0:
            at = torch.tensor(tokens, device=self._device)
            once = torch.ones_like(at, dtype=torch.int32)
            self._slots.counts[slot].index_add_(0, at, -once)

    def _among(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor] | None:
        """Which of `rows` are adjusted, and their slots."""
        if not len(self._slots):
            return None
        slots = self._slot_of[rows]
        at = np.flatnonzero(slots >= 0)
        if not len(at):
            return None
        return (
            torch.from_numpy(at).to(self._device),
            torch.from_numpy(slots[at]).to(self._device),
        )

    def _grow(self) -> None:
        before = self._slots
        slots = max(1, 2 * len(before))
        self._slots = _Slots.empty(slots, self._vocabulary, self._device)
        self._slots.copy_from(before)
        self._free = [*range(len(before), slots)]
