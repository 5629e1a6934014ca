"""Penalties, biases and shortest answers: what is added to the logits of rows that ask for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.engines.transformers.sampling import RowSampling


class Adjustments:
    """The adjustments of up to `states` rows. Only rows that have some occupy memory: a slot each,
    of 10 bytes for every token of the vocabulary. A row that moves keeps its slot."""

    def __init__(self, states: int, vocabulary: int, device: torch.device) -> None:
        self._vocabulary, self._device = vocabulary, device
        self._slots = np.full(states, -1)
        """By row, -1 for none."""
        self._free: list[int] = []
        self._resize(0)

    def add(self, row: int, sampling: RowSampling, prompt: Sequence[int]) -> None:
        """Adjust the row from now on, where `sampling` asks for it."""
        self.remove(row)
        if not sampling.adjusts:
            return
        if not self._free:
            self._resize(max(1, 2 * len(self._counts)))
        slot = self._free.pop()
        self._slots[row] = slot
        for state in (self._counts, self._prompt, self._bias, self._ends):
            state[slot] = 0
        self._prompt[slot, list(prompt)] = True
        if sampling.logit_bias:
            tokens, biases = zip(*sampling.logit_bias, strict=True)
            self._bias[slot, list(tokens)] = torch.tensor(biases, device=self._device)
        if sampling.min_tokens:
            self._ends[slot, list(sampling.ends)] = True
        self._frequency[slot] = sampling.frequency_penalty
        self._presence[slot] = sampling.presence_penalty
        self._repetition[slot] = sampling.repetition_penalty
        self._min_tokens[slot] = sampling.min_tokens

    def move(self, source: int, target: int) -> None:
        self.remove(target)
        self._slots[target], self._slots[source] = self._slots[source], -1

    def remove(self, row: int) -> None:
        slot = self._slots[row]
        if slot < 0:
            return
        self._slots[row] = -1
        self._free.append(int(slot))
        if len(self._free) == len(self._counts):
            self._resize(0)

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
        counts = self._counts[slots]
        generated = counts > 0
        scores = logits[at] + self._bias[slots]
        penalty = self._repetition[slots][:, None]
        repeated = torch.where(scores > 0, scores / penalty, scores * penalty)
        scores = torch.where(generated | self._prompt[slots], repeated, scores)
        scores -= self._frequency[slots][:, None] * counts
        scores -= self._presence[slots][:, None] * generated
        early = steps[at] < self._min_tokens[slots]
        scores.masked_fill_(early[:, None] & self._ends[slots], -torch.inf)
        return logits.index_copy(0, at, scores)

    def count(self, rows: NDArray[np.int64], tokens: Tensor) -> None:
        """Count the tokens `[rows]` that were generated."""
        if (chosen := self._among(rows)) is not None:
            at, slots = chosen
            self._counts[slots, tokens[at]] += 1

    def withdraw(self, row: int, tokens: Sequence[int]) -> None:
        """Count these tokens of the row no more."""
        if (slot := self._slots[row]) >= 0:
            at = torch.tensor(tokens, device=self._device)
            self._counts[slot].index_add_(0, at, -torch.ones_like(at, dtype=torch.int32))

    def _among(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor] | None:
        """Which of `rows` are adjusted, and their slots."""
        if not len(self._counts):
            return None
        slots = self._slots[rows]
        at = np.flatnonzero(slots >= 0)
        if not len(at):
            return None
        return (
            torch.from_numpy(at).to(self._device),
            torch.from_numpy(slots[at]).to(self._device),
        )

    def _resize(self, slots: int) -> None:
        shape, device = (slots, self._vocabulary), self._device
        before = getattr(self, "_counts", torch.empty(0))
        kept = min(len(before), slots)
        for name, size, dtype in (
            ("_counts", shape, torch.int32),
            ("_prompt", shape, torch.bool),
            ("_bias", shape, torch.float32),
            ("_ends", shape, torch.bool),
            ("_frequency", (slots,), torch.float32),
            ("_presence", (slots,), torch.float32),
            ("_repetition", (slots,), torch.float32),
            ("_min_tokens", (slots,), torch.long),
        ):
            state = torch.zeros(size, dtype=dtype, device=device)
            if kept:
                state[:kept] = getattr(self, name)[:kept]
            setattr(self, name, state)
        self._free = list(range(kept, slots))
