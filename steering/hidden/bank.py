"""Every loaded guard of the hidden seam, of all methods, as one set of columns.

A method stacks its guards (`HiddenGuards`); a bank puts the stacks of one model side by side. Each
guard senses at decoder layers of its own and decides at the last of them, so guards whose layers
interleave live in one bank: a guard that senses behind a layer where another guard acts on the same
row reads the states that the other guard has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Placement:
    """Where and when one guard senses and acts.

    The score of a token is the sum of the scores of `HiddenGuards.sense` at `sense_layers`; the
    statistic of a row is the mean of its `pool` largest scores. A guard that fires acts after
    `act_layers` at the token where it fires and at the next ones, `steps` tokens in all. Where the
    row rechecks, a topical token starts that again once `rest` tokens have passed (None: `steps`).

    Raises ValueError for an impossible placement.
    """

    sense_layers: tuple[int, ...]
    act_layers: tuple[int, ...]
    steps: int
    pool: int = 1
    rest: int | None = None

    def __post_init__(self) -> None:
        for layers in (self.sense_layers, self.act_layers):
            if not layers or len(set(layers)) != len(layers):
                raise ValueError("needs layers to sense and to act on, each listed once")
        if self.steps < 1:
            raise ValueError("must act for at least one step")
        if self.decides > min(self.act_layers):
            raise ValueError("would act at a layer before its last sensing layer")
        if self.rest is not None and self.rest < 1:
            raise ValueError("rest must be at least 1")
        if self.pool < 1:
            raise ValueError("pool must be at least 1")

    @property
    def decides(self) -> int:
        """The layer after which the guard decides."""
        return max(self.sense_layers)


class HiddenGuards(Protocol):
    """All loaded guards of one method, stacked; column i is the guard `names[i]`.

    States are float32, `[..., width]`, the output of a decoder layer, with any leading shape.
    """

    names: Sequence[str]
    width: int
    placements: Sequence[Placement]

    def sense(self, layer: int, states: Tensor) -> Tensor:
        """Scores `[..., guards]` that `states` add at `layer`; zeros where a guard does not sense.

        A larger score means more of the concept.
        """

    def act(
        self, layer: int, states: Tensor, guard: Tensor, age: Tensor, strength: Tensor
    ) -> Tensor:
        """The change `[..., width]` that guards make to `states [..., width]` after `layer`.

        `guard`, `age` and `strength` are `[...]`: a column, the tokens since it fired (0 at the
        first), and the factor on the change, which is zero for places where nothing is due. The
        change may depend on the states (`-r (r·h)`, `target - h`); it is zero where the guard does
        not act at `layer`. Changes of several guards at one token are summed.
        """


class HiddenBank:
    """The stacks of one model side by side. Immutable; swap the whole bank to change it.

    Raises ValueError for two guards of one name, or guards of different widths.
    """

    def __init__(
        self, stacks: Sequence[HiddenGuards] = (), device: torch.device | str = "cpu"
    ) -> None:
        names = [name for stack in stacks for name in stack.names]
        self.index = {name: column for column, name in enumerate(names)}
        """Name → column."""
        if len(self.index) != len(names):
            raise ValueError("two guards of a bank have the same name")
        if len({stack.width for stack in stacks}) > 1:
            raise ValueError("the guards of a bank must be of one width, that of the model")
        self.device = torch.device(device)
        self.stacks = tuple(stacks)
        sizes = [len(stack.names) for stack in stacks]
        self._first = [sum(sizes[:i]) for i in range(len(sizes))]
        placements = [placement for stack in stacks for placement in stack.placements]
        self.pool = max((placement.pool for placement in placements), default=1)
        weights = torch.zeros(len(placements), self.pool)
        for column, placement in enumerate(placements):
            weights[column, : placement.pool] = 1.0 / placement.pool
        self.pool_weights = weights.to(self.device)
        """`[guards, pool]`: a guard's statistic is this product with its largest scores."""
        self.lengths = self._column([placement.steps for placement in placements])
        self.rests = self._column([p.steps if p.rest is None else p.rest for p in placements])
        self.sense_layers = frozenset(at for p in placements for at in p.sense_layers)
        self.act_layers = frozenset(at for p in placements for at in p.act_layers)
        self.decisions = {
            layer: self._which([placement.decides == layer for placement in placements])
            for layer in sorted({placement.decides for placement in placements})
        }
        """Layer → which guards decide there, `[guards]`; None for all of them."""
        self.acting = {
            layer: self._which([layer in placement.act_layers for placement in placements])
            for layer in sorted(self.act_layers)
        }
        """Layer → which guards act there, `[guards]`; None for all of them."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def layers(self) -> list[int]:
        """Decoder layers that need a hook."""
        return sorted(self.sense_layers | self.act_layers)

    @property
    def last_decision(self) -> int:
        """The layer after which all guards have decided, -1 without guards."""
        return max(self.decisions, default=-1)

    def sense(self, layer: int, states: Tensor) -> Tensor:
        """Scores `[..., guards]` of `states [..., width]`, float32; see `HiddenGuards.sense`."""
        scores = [stack.sense(layer, states) for stack in self.stacks]
        return scores[0] if len(scores) == 1 else torch.cat(scores, -1)

    def act(
        self, layer: int, states: Tensor, guard: Tensor, age: Tensor, strength: Tensor
    ) -> Tensor:
        """The change `[..., width]` of `states`; `guard [...]` are columns of the bank.

        See `HiddenGuards.act`.
        """
        if len(self.stacks) == 1:
            return self.stacks[0].act(layer, states, guard, age, strength)
        total = torch.zeros(*guard.shape, states.shape[-1], device=states.device)
        for first, stack in zip(self._first, self.stacks, strict=True):
            column = guard - first
            belongs = (column >= 0) & (column < len(stack.names))
            column, share = column.where(belongs, 0), strength.where(belongs, 0.0)
            change = stack.act(layer, states, column, age.where(belongs, 0), share)
            total = torch.where(belongs[..., None], change, total)
        return total

    def _column(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _which(self, chosen: Sequence[bool]) -> Tensor | None:
        return None if all(chosen) else torch.tensor(chosen, device=self.device)
