"""The guidance seam: the terms that guards add to the guidance of each denoising step.

A `GuidanceGuards` holds every loaded guard of one method, stacked, and is immutable. It reads
prompts as an `EmbeddingGuards` does, to decide on which rows it acts, and leaves the conditioning
as it is. `Guidance` holds the guards on the rows of the running batch. Each guard on a row is a
*pair*; a pair costs one extra row in the denoiser's forward for each condition of its method, and
none where the method has no conditions. A guard may have a *window* of noise levels: outside of it
its pairs cost no rows, have no terms and change no bit.

In one denoising step, with classifier-free guidance of scale `s`, a row's prediction becomes
`u + s (c - u - Σ term)`: `u` unconditional, `c` conditional, one term a pair. A row without pairs
gets the bits of the bare `u + s (c - u)`. At a scale of 1 or less an engine has no unconditional
prediction, and a term would have no effect: such a row must be refused before it is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
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
    under which the method needs a prediction at each step; None where it needs none. A method whose
    guards do not act at every step is a `WindowedGuards` too.
    """

    conditions: Conditioning | None
    per_guard: int

    def term(self, at: Predictions) -> tuple[Tensor, Tensor]:
        """The term to subtract from the guidance of each pair, and the memory of its next step:
        `[pairs, ...]`, float32."""


@runtime_checkable
class WindowedGuards(Protocol):
    """Guards that act in a window of noise levels each: `windows` has the lowest and the highest,
    as `Schedule.sigma` has them, the noise over the signal."""

    windows: Sequence[tuple[float, float]]


class Guidance:
    """The guidance guards of one model and the pairs of its running batch. Not thread-safe.

    Rows are added, moved and removed as in `steering.hidden.table.Table`. In one step, an engine
    calls `advance`, predicts for the latents of `extra_rows` under `text`, where there are any, and
    then calls `combine`. Raises ValueError for two guards of one name.
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
        self._pairs: list[_Pair] = []
        self._spans: _Spans | None = None
        """Of the pairs; None where no pair has a window."""
        self._memory: Tensor | None = None
        self._layout: _Layout | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def __len__(self) -> int:
        """The number of pairs of the batch."""
        return len(self._pairs)

    def add(
        self, row: int, guards: Sequence[RowGuard], sigmas: Sequence[float] | None = None
    ) -> None:
        """Put the guards that act on a fresh row.

        `sigmas` are the noise levels before the evaluations that generate it, falling, which guards
        with a window need. Raises KeyError for an unknown guard, and ValueError without the noise
        levels that one needs, or where none of them lies in its window: it could not act.
        """
        pairs = [self._pair(row, guard, sigmas) for guard in guards]
        self.remove(row)
        if self._memory is not None:
            fresh = self._memory.new_zeros(len(pairs), *self._memory.shape[1:])
            self._memory = torch.cat([self._memory, fresh])
        self._change([*self._pairs, *pairs])

    def check(self, guards: Sequence[RowGuard], sigmas: Sequence[float]) -> None:
        """Raise as `add` for guards that cannot be put on a row of these noise levels."""
        for guard in guards:
            self._pair(0, guard, sigmas)

    def move(self, source: int, target: int) -> None:
        """Let the request on row `source` live on row `target` from now on."""
        self.remove(target)
        self._change(
            [replace(pair, row=target) if pair.row == source else pair for pair in self._pairs]
        )

    def remove(self, row: int) -> None:
        """Forget the request on `row`."""
        keep = [index for index, pair in enumerate(self._pairs) if pair.row != row]
        if len(keep) == len(self._pairs):
            return
        self._memory = None if self._memory is None else self._memory[keep]
        self._change([self._pairs[index] for index in keep])

    def advance(self, generated: Sequence[int]) -> bool:
        """Begin a step in which each row has `generated` evaluations behind it; whether the extra
        rows are others than before. Without this, every pair is in its window."""
        return self._spans is not None and self._advanced(self._spans, generated)

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
        if self._memory is None:
            self._memory = torch.zeros(
                len(self._pairs), *conditional.shape[1:], device=conditional.device
            )
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
        total = total.index_add_(0, layout.rows, terms[layout.pairs])
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

    def _pair(self, row: int, guard: RowGuard, sigmas: Sequence[float] | None) -> _Pair:
        number, column = self._index[guard.name]
        pair = _Pair(row, number, column, guard.strength)
        stack = self._stacks[number]
        if not isinstance(stack, WindowedGuards):
            return pair
        if sigmas is None:
            raise ValueError(
                f"{guard.name} acts in a window of noise levels: give those of its row"
            )
        low, high = stack.windows[column]
        within = [at for at, sigma in enumerate(sigmas) if low <= sigma <= high]
        if not within:
            raise ValueError(
                f"{guard.name} acts at noise levels from {low:g} to {high:g}, and none of the "
                f"{len(sigmas)} steps of this image has one: ask for more steps"
            )
        return replace(pair, first=within[0], end=within[-1] + 1)

    def _change(self, pairs: Sequence[_Pair]) -> None:
        self._pairs = list(pairs)
        self._spans = _Spans.of(pairs)
        self._layout = None

    def _advanced(self, spans: _Spans, generated: Sequence[int]) -> bool:
        at = np.asarray(generated)[spans.row]
        active = (spans.first <= at) & (at < spans.end)
        if spans.active is not None and np.array_equal(active, spans.active):
            return False
        self._spans = replace(spans, active=active)
        self._layout = None
        return True

    def _arrange(self) -> _Layout:
        """Lay out the pairs that are in their windows, once for each change of these."""
        first = [0]
        for stack in self._stacks:
            rows = 0 if stack.conditions is None else stack.conditions.rows
            first.append(first[-1] + rows)
        active = None if self._spans is None else self._spans.active
        acting = [i for i in range(len(self._pairs)) if active is None or active[i]]
        extra_rows: list[int] = []
        conditions: list[int] = []
        extras: dict[int, list[int]] = {}
        for index in acting:
            pair = self._pairs[index]
            stack = self._stacks[pair.stack]
            size = 0 if stack.conditions is None else stack.per_guard
            start = first[pair.stack] + pair.column * size
            extras[index] = list(range(len(extra_rows), len(extra_rows) + size))
            extra_rows += [pair.row] * size
            conditions += range(start, start + size)
        groups = []
        for number, stack in enumerate(self._stacks):
            members = [i for i in acting if self._pairs[i].stack == number]
            if members:
                groups.append(
                    _Group(
                        stack=stack,
                        pairs=self._integers(members),
                        rows=self._integers([self._pairs[i].row for i in members]),
                        guard=self._integers([self._pairs[i].column for i in members]),
                        strength=torch.tensor(
                            [self._pairs[i].strength for i in members], device=self._device
                        ),
                        extra=self._integers([extras[i] for i in members]).view(len(members), -1),
                    )
                )
        return _Layout(
            pairs=self._integers(acting),
            rows=self._integers([self._pairs[i].row for i in acting]),
            extra_rows=self._integers(extra_rows),
            conditions=self._integers(conditions),
            groups=groups,
        )

    def _integers(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


@dataclass(frozen=True)
class _Pair:
    """A guard on a row: its stack, its column there, its strength, and the evaluations of the row,
    from `first` up to `end`, in which it acts; `end` is None for a guard without a window."""

    row: int
    stack: int
    column: int
    strength: float
    first: int = 0
    end: int | None = None


@dataclass(frozen=True)
class _Spans:
    """Rows and evaluations of the pairs, each `[pairs]`, and those that act in this step; None
    before its beginning."""

    row: NDArray[np.int64]
    first: NDArray[np.int64]
    end: NDArray[np.int64]
    active: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, pairs: Sequence[_Pair]) -> _Spans | None:
        """None where no pair has a window."""
        if all(pair.end is None for pair in pairs):
            return None
        never = np.iinfo(np.int64).max
        ends = [never if pair.end is None else pair.end for pair in pairs]
        return cls(
            np.array([pair.row for pair in pairs]),
            np.array([pair.first for pair in pairs]),
            np.array(ends),
        )


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
    """The pairs that act and their rows, `[acting pairs]`; the row and the condition of each extra
    prediction; these pairs by stack."""

    pairs: Tensor
    rows: Tensor
    extra_rows: Tensor
    conditions: Tensor
    groups: Sequence[_Group]
