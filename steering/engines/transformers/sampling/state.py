"""The sampling of all rows of a running batch, and what it has to remember of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.engines.transformers.sampling import RowSampling
from steering.engines.transformers.sampling.adjustments import Adjustments
from steering.engines.transformers.sampling.choice import sample, uniform

if TYPE_CHECKING:
    from steering.engines.transformers.sampling.grammars import Matchers

_NONE = RowSampling()


class SamplingState:
    """The rows `0..states-1`, of which any may be added, moved and removed."""

    def __init__(self, states: int, vocabulary: int, device: torch.device) -> None:
        self.settings = [_NONE] * states
        """How each row is sampled."""
        self._device = device
        self._steps = torch.zeros(states, dtype=torch.long, device=device)
        self._seeds = torch.zeros(states, dtype=torch.long, device=device)
        # temperature, top_p, top_k, min_p; on the host too, where it is known who needs them
        self._numbers = np.zeros((4, states))
        self._table = torch.zeros(4, states, device=device)
        self._adjustments = Adjustments(states, vocabulary, device)
        self._matchers: Matchers | None = None

    def add(self, row: int, sampling: RowSampling, prompt: Sequence[int]) -> None:
        """Sample the row, whose prompt has these tokens, in this way from its first token on."""
        self.settings[row] = sampling
        self._steps[row] = 0
        self._seeds[row] = sampling.seed
        numbers = sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p
        self._numbers[:, row] = numbers
        self._table[:, row] = torch.tensor(numbers, device=self._device)
        self._adjustments.add(row, sampling, prompt)
        if self._matchers is None and sampling.grammar is not None:
            # imported here: fits, which use the engine, need no llguidance
            from steering.engines.transformers.sampling.grammars import Matchers

            self._matchers = Matchers()
        if self._matchers is not None:
            self._matchers.add(row, sampling.grammar)

    def move(self, source: int, target: int) -> None:
        self.settings[target] = self.settings[source]
        self._numbers[:, target] = self._numbers[:, source]
        self._table[:, target] = self._table[:, source]
        for state in (self._steps, self._seeds):
            state[target] = state[source]
        self._adjustments.move(source, target)
        if self._matchers is not None:
            self._matchers.move(source, target)

    def remove(self, row: int) -> None:
        """Let go of what the row holds."""
        self.settings[row] = _NONE
        self._adjustments.remove(row)
        if self._matchers is not None:
            self._matchers.remove(row)

    def choose(self, rows: NDArray[np.int64], logits: Tensor) -> Tensor:
        """The next token of each of `rows`, int64 `[rows]`, from `logits [rows, vocabulary]`."""
        at = torch.from_numpy(rows).to(self._device)
        steps = self._steps[at]
        scores = self._adjustments.apply(rows, steps, logits)
        if self._matchers is not None:
            scores = self._matchers.mask(rows, scores)
        temperatures, _, top_k, min_p = self._numbers[:, rows]
        if not temperatures.any():
            tokens = scores.argmax(-1)
        else:
            table = self._table[:, at]
            tokens = sample(
                scores,
                table[0],
                table[1],
                uniform(self._seeds[at], steps),
                top_k=table[2].long() if top_k.any() else None,
                min_p=table[3] if min_p.any() else None,
            )
        self._steps[at] += 1
        self._adjustments.count(rows, tokens)
        return tokens

    def withdraw(self, row: int, tokens: Sequence[int]) -> None:
        """Forget the last tokens of a row, which has no grammar."""
        self._steps[row] -= len(tokens)
        self._adjustments.withdraw(row, tokens)

    def follow(self, rows: NDArray[np.int64], tokens: Sequence[int]) -> frozenset[int]:
        """Pass the chosen tokens to the grammars of rows; returns the places among `rows` whose
        grammar cannot follow its answer."""
        return frozenset() if self._matchers is None else self._matchers.advance(rows, tokens)
