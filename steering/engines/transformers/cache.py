"""Keys and values: of prompts while they are read, and of rows that generate.

transformers' own caches have one sequence length for all rows. In a `SlotCache` each row writes at
its own position, and a row that joins or leaves copies at most one other row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_GROWTH = 256

States = tuple[Tensor, Tensor]
"""Keys and values of one layer, each `[rows, heads, tokens, size]`."""


class PromptCache(Cache):
    """Prompts of `tokens` columns: some rows padded on the left, in one forward, or one prompt in
    several.

    `past` is the number of columns that earlier forwards have read; who runs the forwards counts.
    """

    def __init__(self, layers: int, tokens: int) -> None:
        self.tokens, self.past = tokens, 0
        self._prompts = [_PromptLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self._prompts))

    def take(self, layer: int) -> States:
        """The states of a layer, which the cache gives up."""
        return self._prompts[layer].take()

    def rows(self, at: Tensor, past: int) -> PromptCache:
        """The rows `at`, to be read again from the column `past` on."""
        part = PromptCache(len(self._prompts), self.tokens)
        part.past = past
        if past:
            for layer, theirs in zip(self._prompts, part._prompts, strict=True):
                theirs.fill(layer.keys[at], layer.values[at])
        return part

    def put(self, at: Tensor, part: PromptCache) -> None:
        """Take over the states of `part`, of the rows `at`."""
        for layer, theirs in zip(self._prompts, part._prompts, strict=True):
            keys, values = theirs.take()
            layer.keys[at], layer.values[at] = keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.past


class SlotCache(Cache):
    """Rows `0..n-1` generate. Each forward needs a call of `decode` before it."""

    def __init__(self, layers: int) -> None:
        self.slots = self.columns = 0
        """The rows, and the tokens of each, that every layer has room for."""
        self.index: Tensor
        self.positions: Tensor
        self.read = (0, 1)
        """(rows, tokens) that the next forward attends to."""
        self._slots = [_SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self._slots))

    def reserve(self, slots: int, tokens: int) -> None:
        """Make room for `slots` rows of `tokens` tokens; gives back room for many more rows."""
        room = self.slots
        if slots > room:
            # a quarter more: rows that join one by one do not copy all others each time
            room = max(slots, room * 5 // 4)
        elif slots * 2 < room:
            room = slots
        columns = max(self.columns, -(-tokens // _GROWTH) * _GROWTH)
        if (room, columns) == (self.slots, self.columns):
            return
        self.slots, self.columns = room, columns
        for layer in self._slots:
            if layer.is_initialized:
                layer.resize()

    def put(self, layer: int, first: int, states: States) -> None:
        """Fill the slots from `first` on with `states`, whose rows begin in the first column."""
        self._slots[layer].put(first, states)

    def row(self, layer: int, slot: int, tokens: int) -> States:
        """The first `tokens` columns of one slot, without a copy."""
        kept = self._slots[layer]
        at = slice(slot, slot + 1)
        return kept.keys[at, :, :tokens], kept.values[at, :, :tokens]

    def decode(self, positions: Tensor, tokens: int) -> None:
        """The next forward writes one token for each of the first `len(positions)` rows and reads
        `tokens` columns."""
        self.reserve(len(positions), tokens)
        self.index = torch.arange(len(positions), device=positions.device)[:, None]
        self.positions = positions[:, None]
        self.read = (len(positions), tokens)

    def move(self, source: int, target: int) -> None:
        """Copy row `source` into slot `target`."""
        for layer in self._slots:
            if layer.is_initialized:
                layer.keys[target] = layer.keys[source]
                layer.values[target] = layer.values[source]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.read[1] - 1


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    is_sliding = False
    is_compileable = False
    keys: Tensor
    values: Tensor

    def __init__(self, owner: PromptCache | SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner: Any = owner

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return int(self._owner.get_seq_length())

    def get_max_length(self) -> int:
        return -1


class _PromptLayer(_Layer):  # type: ignore[no-untyped-call]
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._empty(key_states), self._empty(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        first, last = self._owner.past, self._owner.past + key_states.shape[2]
        if last - first == self._owner.tokens:
            self.fill(key_states, value_states)
            return key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys[:, :, first:last] = key_states
        self.values[:, :, first:last] = value_states
        return self.keys[:, :, :last], self.values[:, :, :last]

    def fill(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.is_initialized = True

    def take(self) -> States:
        states = self.keys, self.values
        del self.keys, self.values
        return states

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_empty(like.shape[0], like.shape[1], self._owner.tokens, like.shape[3])


class _SlotLayer(_Layer):  # type: ignore[no-untyped-call]
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._empty(key_states), self._empty(value_states)
        self.is_initialized = True

    def put(self, first: int, states: States) -> None:
        if not self.is_initialized:
            self.lazy_initialization(*states)
        rows, _, tokens, _ = states[0].shape
        for kept, new in zip((self.keys, self.values), states, strict=True):
            # columns of the row before are masked, but NaN passes through a mask
            kept[first : first + rows, :, tokens:] = 0.0
            kept[first : first + rows, :, :tokens] = new

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        at = self._owner
        self.keys[at.index, :, at.positions] = key_states.transpose(1, 2)
        self.values[at.index, :, at.positions] = value_states.transpose(1, 2)
        rows, tokens = at.read
        return self.keys[:rows, :, :tokens], self.values[:rows, :, :tokens]

    def resize(self) -> None:
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = self._empty(old)
            rows = min(len(old), len(new))
            new[:rows, :, : old.shape[2]] = old[:rows]
            setattr(self, name, new)

    def _empty(self, like: Tensor) -> Tensor:
        # zeros: columns that a row has not reached are masked, but 0 * NaN is NaN
        owner = self._owner
        return like.new_zeros(owner.slots, like.shape[1], owner.columns, like.shape[3])
