"""The key-value caches of a running batch: rows of similar length share one lane.

A batch attends to as many columns as its longest row has, and its cache holds that many for every
row. Where the lengths differ much, most of both would be padding, paid by every row: hence rows
with a long prompt have lanes of their own, each with a cache and a forward of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from steering.engines.transformers.cache import PromptCache, SlotCache, States

SHORTEST = 1024
"""The columns of the first lane; each further lane has twice as many as the one before."""


class Lane:
    """Rows of at most `limit` tokens; row `rows[i]` of the engine has slot i of the `cache`."""

    def __init__(self, layers: int, limit: int) -> None:
        self.limit = limit
        self.cache = SlotCache(layers)
        self.rows: list[int] = []


class Lanes:
    """The caches of the rows `0..n-1`, which are added and removed at the end alone."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._lanes: dict[int, Lane] = {}
        self._lane_of: list[Lane] = []

    def __iter__(self) -> Iterator[Lane]:
        """The lanes that have rows, the shortest first."""
        return iter([self._lanes[limit] for limit in sorted(self._lanes)])

    def add(self, lengths: Sequence[int], prompts: PromptCache) -> None:
        """Add rows with the prompts in `prompts`, padded on the left; takes over their states."""
        first = len(self._lane_of)
        placed: dict[int, list[int]] = {}
        for i, length in enumerate(lengths):
            placed.setdefault(_limit(length + 1), []).append(i)
        slots = {}
        for limit, chosen in placed.items():
            lane = self._lane(limit)
            slots[limit] = len(lane.rows)
            lane.rows += [first + i for i in chosen]
            lane.cache.reserve(len(lane.rows), max(lengths[i] for i in chosen) + 1)
        self._lane_of += [self._lanes[_limit(length + 1)] for length in lengths]
        padding = [prompts.tokens - length for length in lengths]
        for layer in range(self._layers):
            # layer by layer: what is copied is freed before the next layer is allocated
            states = prompts.take(layer)
            for limit, chosen in placed.items():
                part = states if len(chosen) == len(lengths) else _rows(states, chosen)
                part = _aligned(part, [padding[i] for i in chosen])
                self._lanes[limit].cache.put(layer, slots[limit], part)

    def outgrow(self, lengths: Sequence[int]) -> None:
        """Move rows that have no room for one more token to the next lane."""
        for row, length in enumerate(lengths):
            lane = self._lane_of[row]
            if length < lane.limit:
                continue
            target, slot = self._lane(_limit(length + 1)), lane.rows.index(row)
            target.rows.append(row)
            target.cache.reserve(len(target.rows), length + 1)
            for layer in range(self._layers):
                states = lane.cache.row(layer, slot, length)
                target.cache.put(layer, len(target.rows) - 1, states)
            self._vacate(lane, slot)
            self._lane_of[row] = target

    def replace(self, row: int) -> None:
        """Let the last row take the place of `row`, which is removed."""
        lane = self._lane_of[row]
        self._vacate(lane, lane.rows.index(row))
        moved, last = self._lane_of.pop(), len(self._lane_of)
        if row != last:
            moved.rows[moved.rows.index(last)] = row
            self._lane_of[row] = moved

    def _lane(self, limit: int) -> Lane:
        if limit not in self._lanes:
            self._lanes[limit] = Lane(self._layers, limit)
        return self._lanes[limit]

    def _vacate(self, lane: Lane, slot: int) -> None:
        last = len(lane.rows) - 1
        if slot != last:
            lane.cache.move(last, slot)
            lane.rows[slot] = lane.rows[last]
        lane.rows.pop()
        if lane.rows:
            lane.cache.reserve(len(lane.rows), 0)
        else:
            del self._lanes[lane.limit]


def _limit(tokens: int) -> int:
    """The limit of the lane for rows of that many tokens."""
    return max(SHORTEST, 1 << (tokens - 1).bit_length())


def _rows(states: States, chosen: Sequence[int]) -> States:
    keys, values = states
    return keys[[*chosen]], values[[*chosen]]


def _aligned(states: States, padding: Sequence[int]) -> States:
    """Rows without the `padding` on their left, and with zeros behind the shorter ones."""
    if not any(padding):
        return states
    keys, values = states
    width = keys.shape[2]
    shift = torch.tensor(padding, device=keys.device)[:, None]
    column = torch.arange(width - min(padding), device=keys.device) + shift
    real = (column < width)[:, None, :, None]
    at = column.clamp(max=width - 1)[:, None, :, None]

    def align(part: Tensor) -> Tensor:
        index = at.expand(len(part), part.shape[1], column.shape[1], part.shape[3])
        return torch.where(real, part.gather(2, index), 0.0)

    return align(keys), align(values)
