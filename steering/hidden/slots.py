"""The guards of each row, slot by slot: slot j of a row is the j-th guard that its request carries.

A table holds state for the guards that rows carry, however many are loaded: ten thousand guards of
which each request carries two cost two slots a row. Guards are swapped without moving any of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """`values` as a tensor there, without making the host wait for the device."""
    tensor = torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


_SETTINGS = (
    *("column", "carried", "acts", "threshold", "recheck", "strength"),
    *("length", "rest", "decides", "pool", "tokens", "follow_up"),
)
"""What is set when a request comes, in the order of `Slots.put`."""

NEVER = 2**62
"""Where a schedule starts that has not: every step is before it."""

ENDLESS = 2**40
"""The length of a schedule that does not end: no answer has so many tokens."""

_FILL = {
    "column": 0,
    "carried": False,
    "acts": False,
    "threshold": inf,
    "recheck": inf,
    "strength": 0.0,
    "length": 0,
    "rest": 0,
    "decides": -1,
    "pool": 0,
    "tokens": 0,
    "follow_up": 1.0,
    "valid": True,
    "fired": -1,
    "start": NEVER,
    "rewinds": 0,
}
"""The value of each tensor in a slot that nobody uses."""


class Slots:
    """Tensors `[rows, most]`, and `[rows, most, pool]` of `top` and `weights`.

    `column` is the guard's column in the bank; `carried` marks the slots in use; `acts`,
    `threshold`, `recheck` (inf: none) and `strength` are those of `RowGuard`; `length`, `rest`,
    `decides`, `follow_up` and `tokens` (an index into `TOKENS`) those of `Placement`. `top` are the
    largest scores so far, `weights` what makes their mean of them; `fired` counts generated tokens,
    -1 for never, and so does `start`. `rewinds` counts how often the row went back for the guard.

    They stay where they are until `widen`: a captured graph may hold on to them.
    """

    def __init__(self, rows: int, most: int, pool: int, device: torch.device) -> None:
        self._device = device
        self.column: Tensor
        self.carried: Tensor
        self.acts: Tensor
        self.threshold: Tensor
        self.recheck: Tensor
        self.strength: Tensor
        self.length: Tensor
        self.rest: Tensor
        self.decides: Tensor
        self.pool: Tensor
        self.tokens: Tensor
        self.follow_up: Tensor
        self.valid: Tensor
        self.fired: Tensor
        self.start: Tensor
        self.rewinds: Tensor
        for name, value in _FILL.items():
            setattr(self, name, torch.full((rows, most), value, device=device))
        self.top = torch.zeros(rows, most, pool, device=device)
        self.weights = torch.zeros(rows, most, pool, device=device)

    @property
    def most(self) -> int:
        """The largest number of guards on a row."""
        return self.column.shape[1]

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*(getattr(self, name) for name in _FILL), self.top, self.weights]

    def put(self, row: int, settings: Sequence[Sequence[float]]) -> None:
        """Fill `row` with guards: for each, its column, 1.0, and the rest of `_SETTINGS` as
        numbers, in order."""
        values = np.empty((len(_SETTINGS), self.most))
        values[:] = [[float(_FILL[name])] for name in _SETTINGS]
        if settings:
            values[:, : len(settings)] = np.array(settings, np.float64).T
        for name, value in zip(_SETTINGS, on_device(values, self._device), strict=True):
            getattr(self, name)[row] = value
        size = self.top.shape[-1]
        place = torch.arange(size, device=self._device)
        count = self.pool[row][:, None]
        self.weights[row] = (place < count) / count.clamp(min=1)

    def restart(self, row: int) -> None:
        """Reset the statistics and decisions on `row`."""
        self.top[row] = 0.0
        self.valid[row] = True
        self.fired[row], self.start[row], self.rewinds[row] = -1, NEVER, 0

    def leave(self, row: int) -> None:
        """Let nobody's guards be on `row`."""
        self.carried[row] = self.acts[row] = False
        self.threshold[row] = self.recheck[row] = inf

    def widen(self, most: int, pool: int) -> None:
        """Make room for `most` guards on a row and pools of `pool`, where there is less."""
        rows, current, size = self.top.shape
        if most <= current and pool <= size:
            return
        # a tensor that inference mode has made could not be changed outside of it
        with torch.inference_mode(False):
            wider = Slots(rows, max(most, current), max(pool, size), self._device)
            for name in _FILL:
                getattr(wider, name)[:, :current] = getattr(self, name)
            for name in ("top", "weights"):
                getattr(wider, name)[:, :current, :size] = getattr(self, name)
        vars(self).update(vars(wider))
