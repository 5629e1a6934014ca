"""A key-value cache with one slot for each row, so that rows can join and leave a running batch.

transformers' own caches have one sequence length for all rows. Here each row writes at its own
position, and a row that joins or leaves copies at most one other row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_GROWTH = 256


class SlotCache(Cache):
    """Rows `0..n-1` are live. Each forward needs a call of `prefill` or `decode` before it, which
    sets the rows and positions that it writes."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = _GROWTH
        self.rows: Tensor
        self.positions: Tensor
        self.read: tuple[int, int] | None = None
        """(rows, tokens) that a decode step attends to; None while prefilling."""
        self._slots = [_SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self._slots))

    def prefill(self, rows: Tensor, positions: Tensor) -> None:
        """The next forward writes `positions [n, tokens]` of `rows [n]`; -1 marks padding, which is
        discarded."""
        self.rows = rows[:, None].expand_as(positions)
        self._reserve(int(positions.max()) + 1)
        # padding is written to the last column, which is never read
        self.positions = torch.where(positions < 0, self.length - 1, positions)
        self.read = None

    def decode(self, positions: Tensor, tokens: int) -> None:
        """The next forward writes one token for each of the first `len(positions)` rows and reads
        `tokens` columns."""
        self._reserve(tokens)
        self.rows = torch.arange(len(positions), device=positions.device)[:, None]
        self.positions = positions[:, None]
        self.read = (len(positions), tokens)

    def move(self, source: int, target: int) -> None:
        """Copy row `source` into slot `target`."""
        for layer in self._slots:
            if layer.is_initialized:
                layer.keys[target] = layer.keys[source]
                layer.values[target] = layer.values[source]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.read is None else self.read[1] - 1

    def _reserve(self, tokens: int) -> None:
        if tokens < self.length:
            return
        grown = (tokens // _GROWTH + 1) * _GROWTH
        for layer in self._slots:
            if layer.is_initialized:
                layer.grow(grown)
        self.length = grown


class _SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    is_sliding = False
    is_compileable = False
    keys: Tensor
    values: Tensor

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = self._empty(key_states, self._owner.length)
        self.values = self._empty(value_states, self._owner.length)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        owner = self._owner
        if owner.read is None:
            # keys and values of the slot's last row are masked, but NaN passes through a mask
            self.keys[owner.rows[:, 0]] = 0.0
            self.values[owner.rows[:, 0]] = 0.0
        self.keys[owner.rows, :, owner.positions] = key_states.transpose(1, 2)
        self.values[owner.rows, :, owner.positions] = value_states.transpose(1, 2)
        if owner.read is None:
            return key_states, value_states
        rows, tokens = owner.read
        return self.keys[:rows, :, :tokens], self.values[:rows, :, :tokens]

    def grow(self, length: int) -> None:
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = self._empty(old, length)
            # without the last column, which holds padding
            new[:, :, : old.shape[2] - 1] = old[:, :, :-1]
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self._owner.get_seq_length()

    def get_max_length(self) -> int:
        return -1

    def _empty(self, like: Tensor, length: int) -> Tensor:
        # zeros: columns that a row has not reached are masked, but 0 * NaN is NaN
        return like.new_zeros(self._owner.capacity, like.shape[1], length, like.shape[3])
