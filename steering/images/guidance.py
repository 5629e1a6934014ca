"""The guidance seam: the terms that guards add to the guidance of each denoising step.

A `GuidanceGuards` holds every loaded guard of one method, stacked, and is immutable. It reads
prompts as an `EmbeddingGuards` does, to decide on which rows it acts, and leaves the conditioning
as it is. `Guidance` holds the guards on the rows of the running batch. Each guard on a row is a
*pair*; a pair costs one extra row in the denoiser's forward for each condition of its method, and
none where the method has no conditions.

In one denoising step, with classifier-free guidance of scale `s`, a row's prediction becomes
`u + s (c - u - Σ term)`: `u` unconditional, `c` conditional, one term a pair. A row without pairs
gets the bits of the bare `u + s (c - u)`. At a scale of 1 or less an engine has no unconditional
prediction, and a term would have no effect: such a row must be refused before it is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning, concatenated
from steering.images.embedding import EmbeddingGuards


@dataclass(frozen=True)
class Predictions:
    """One step of some pairs of one method.

    `latents`, `unconditional` and `conditional` are `[pairs, ...]`: the input of the step, before
    the scheduler's input scale, and the two predictions. `extra [pairs, conditions, ...]` are the
    predictions under the method's conditions. All else is `[pairs]`: `guard` is
    the guard's column in its stack, `timestep` the network's, `progress` the share in [0, 1) of the
    row's steps that are done, `scale` its guidance scale. `memory [pairs, ...]`, float32, is what
    the method returned at the previous step, zeros at first.
    """

    guard: Tensor
    strength: Tensor
    timestep: Tensor
    progress: Tensor
    scale: Tensor
    latents: Tensor
    unconditional: Tensor
    conditional: Tensor
    extra: Tensor
    memory: Tensor

    @property
    def concept(self) -> Tensor:
        """The prediction under the first extra condition, `[pairs, ...]`."""
        return self.extra[:, 0]


class GuidanceGuards(EmbeddingGuards, Protocol):
    """All loaded guards of one guidance method, stacked.

    `conditions` has `per_guard` rows for each guard, in the order of the guards: the conditioning
    under which the method needs a prediction at each step; None where it needs none.
    """

    conditions: Conditioning | None
    per_guard: int

    def term(self, at: Predictions) -> tuple[Tensor, Tensor]:
        """The term to subtract from the guidance of each pair, and the memory of its next step:
        `[pairs, ...]`, float32."""


class Guidance:
    """The guidance guards of one model and the pairs of its running batch. Not thread-safe.

    Rows are added, moved and removed as in `steering.hidden.table.Table`. In one step, an engine
    predicts for the latents of `extra_rows` under `text`, where there are any, and then calls
    `combine`. Raises ValueError for two guards of one name.
    """

    def __init__(
        self, stacks: Sequence[GuidanceGuards], device: torch.device | str = "cpu"
    ) -> None:
        self._stacks = tuple(stacks)
        self._device = torch.device(device)
        columns = [
            (name, number, column)
            for number, stack in enumerate(stacks)
            for column, name in enumerate(stack.names)
        ]
        self._index = {name: (number, column) for name, number, column in columns}
        if len(self._index) != len(columns):
            raise ValueError("two guidance guards of a model have the same name")
        self._pairs: list[tuple[int, int, int, float]] = []
        """Row, stack, column in it and strength of each pair."""
        self._memory: Tensor | None = None
        self._layout: _Layout | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def __len__(self) -> int:
        """The number of pairs of the batch."""
        return len(self._pairs)

    def add(self, row: int, guards: Sequence[RowGuard]) -> None:
        """Put the guards that act on a fresh row. Raises KeyError for an unknown guard."""
        pairs = [(row, *self._index[guard.name], guard.strength) for guard in guards]
        self.remove(row)
        if self._memory is not None:
            fresh = self._memory.new_zeros(len(pairs), *self._memory.shape[1:])
            self._memory = torch.cat([self._memory, fresh])
        self._pairs += pairs
        self._layout = None

    def move(self, source: int, target: int) -> None:
        """Let the request on row `source` live on row `target` from now on."""
        self.remove(target)
        self._pairs = [
            (target if pair[0] == source else pair[0], *pair[1:]) for pair in self._pairs
        ]
        self._layout = None

    def remove(self, row: int) -> None:
        """Forget the request on `row`."""
        keep = [index for index, pair in enumerate(self._pairs) if pair[0] != row]
        if len(keep) == len(self._pairs):
            return
        self._pairs = [self._pairs[index] for index in keep]
        self._memory = None if self._memory is None else self._memory[keep]
        self._layout = None

    @property
    def extra_rows(self) -> Tensor:
        """The row of each extra prediction."""
        return self._laid_out().extra_rows

    @property
    def text(self) -> Conditioning:
        """The conditions of the extra predictions; there must be some."""
        layout = self._laid_out()
        conditions = concatenated([c for stack in self._stacks if (c := stack.conditions)])
        return conditions.select(layout.conditions)

    def touched(self, rows: int) -> Tensor:
        """`[rows]`: the rows that carry a pair."""
        touched = torch.zeros(rows, dtype=torch.bool, device=self._device)
        touched[self._laid_out().rows] = True
        return touched

    def combine(
        self,
        unconditional: Tensor,
        conditional: Tensor,
        extra: Tensor,
        *,
        latents: Tensor,
        timestep: Tensor,
        scale: Tensor,
        progress: Tensor,
    ) -> Tensor:
        """The guided predictions `[rows, ...]` of one step.

        `extra [extra rows, ...]` was predicted under `text`; `timestep`, `scale` and `progress` are
        `[rows]`, the latter the share of a row's steps that are done.
        """
        layout = self._laid_out()
        count = len(self._pairs)
        if self._memory is None:
            self._memory = torch.zeros(count, *conditional.shape[1:], device=conditional.device)
        terms, memory = torch.zeros_like(self._memory), self._memory.clone()
        for group in layout.groups:
            rows = group.rows
            at = Predictions(
                guard=group.guard,
                strength=group.strength,
                timestep=timestep[rows],
                progress=progress[rows],
                scale=scale[rows],
                latents=latents[rows],
                unconditional=unconditional[rows],
                conditional=conditional[rows],
                extra=extra[group.extra],
                memory=self._memory[group.pairs],
            )
            terms[group.pairs], memory[group.pairs] = group.stack.term(at)
        self._memory = memory
        total = torch.zeros_like(conditional, dtype=torch.float32)
        total = total.index_add_(0, layout.rows, terms)
        touched = self.touched(len(conditional))
        shape = (-1, *[1] * (conditional.ndim - 1))
        factor = scale.to(conditional.dtype).view(shape)
        bare = unconditional + factor * (conditional - unconditional)
        steered = unconditional + factor * (conditional - unconditional - total)
        return torch.where(touched.view(shape), steered.to(bare.dtype), bare)

    def _laid_out(self) -> _Layout:
        if self._layout is None:
            self._layout = self._arrange()
        return self._layout

    def _arrange(self) -> _Layout:
        """Lay out the pairs, once for each change of the batch."""
        first = [0]
        for stack in self._stacks:
            rows = 0 if stack.conditions is None else stack.conditions.rows
            first.append(first[-1] + rows)
        extra_rows: list[int] = []
        conditions: list[int] = []
        extras: list[list[int]] = []
        for row, number, column, _ in self._pairs:
            stack = self._stacks[number]
            size = 0 if stack.conditions is None else stack.per_guard
            start = first[number] + column * size
            extras.append(list(range(len(extra_rows), len(extra_rows) + size)))
            extra_rows += [row] * size
            conditions += range(start, start + size)
        groups = []
        for number, stack in enumerate(self._stacks):
            members = [i for i, pair in enumerate(self._pairs) if pair[1] == number]
            if members:
                groups.append(
                    _Group(
                        stack=stack,
                        pairs=self._integers(members),
                        rows=self._integers([self._pairs[i][0] for i in members]),
                        guard=self._integers([self._pairs[i][2] for i in members]),
                        strength=torch.tensor(
                            [self._pairs[i][3] for i in members], device=self._device
                        ),
                        extra=self._integers([extras[i] for i in members]).view(len(members), -1),
                    )
                )
        return _Layout(
            rows=self._integers([pair[0] for pair in self._pairs]),
            extra_rows=self._integers(extra_rows),
            conditions=self._integers(conditions),
            groups=groups,
        )

    def _integers(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


@dataclass(frozen=True)
class _Group:
    """The pairs of one stack: their numbers, rows, columns and strengths `[pairs]`, and the
    indices of their extra predictions, `[pairs, conditions]`."""

    stack: GuidanceGuards
    pairs: Tensor
    rows: Tensor
    guard: Tensor
    strength: Tensor
    extra: Tensor


@dataclass(frozen=True)
class _Layout:
    """`rows [pairs]`; the row and the condition of each extra prediction; the pairs by stack."""

    rows: Tensor
    extra_rows: Tensor
    conditions: Tensor
    groups: Sequence[_Group]
