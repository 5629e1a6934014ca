"""The guidance seam: what guards make of the denoiser's predictions at each step.

A `GuidanceGuards` holds every loaded guard of one method, stacked, and is immutable. It is a
`EmbeddingGuards` too: what it senses on the prompt decides which rows it acts on, but it leaves the
conditioning as it is. `Guidance` holds what the rows of the running batch carry. Each guard on a
row is a *pair*; a pair costs one extra row in the denoiser's forward, conditioned on the guard's
own concept.

In one denoising step, with classifier-free guidance of scale `s`, a row's prediction becomes
`u + s (c - u - Σ term)`: `u` unconditional, `c` conditional, one term a pair. A row without pairs
gets the bits of the bare `u + s (c - u)`. At a scale of 1 or less an engine has no unconditional
prediction, and a guide could do nothing: such a row must be refused before it is added.
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
    """One step of some pairs: predictions `[pairs, ...]`, all else `[pairs]`.

    `guard` is the guard's column in its guide, `progress` the share in [0, 1) of the row's steps
    that are done, `scale` its guidance scale, `memory` what the guide kept from the step before
    (zeros at first).
    """

    guard: Tensor
    strength: Tensor
    progress: Tensor
    scale: Tensor
    unconditional: Tensor
    conditional: Tensor
    concept: Tensor
    memory: Tensor

    def select(self, pairs: Tensor) -> Predictions:
        """These pairs, by index or mask."""
        return Predictions(**{name: value[pairs] for name, value in vars(self).items()})


class GuidanceGuards(EmbeddingGuards, Protocol):
    """All loaded guards of one guidance method, stacked; `concepts` has one row a guard."""

    concepts: Conditioning

    def term(self, at: Predictions) -> tuple[Tensor, Tensor]:
        """What to take off each pair's guidance, and what to remember: `[pairs, ...]`, float32."""


class Guidance:
    """The guides of one model and the pairs of its running batch. Not thread-safe.

    Rows are added, moved and removed as in `steering.hidden.table.Table`. One step of an engine is:
    if `rows` is not empty, predict for these rows' latents once more under `text`, then `combine`.
    """

    def __init__(
        self, guides: Sequence[GuidanceGuards], device: torch.device | str = "cpu"
    ) -> None:
        self.guides = tuple(guides)
        self._device = torch.device(device)
        names = [(name, i, j) for i, g in enumerate(guides) for j, name in enumerate(g.names)]
        self._index = {name: (guide, column) for name, guide, column in names}
        if len(self._index) != len(names):
            raise ValueError("two guides of a model have the same name")
        none = torch.zeros(0, dtype=torch.long, device=self._device)
        self.rows = none
        """Row of each pair."""
        self._guide, self._guard = none, none
        self._strength = torch.zeros(0, device=self._device)
        self._memory: Tensor | None = None
        self._text: Conditioning | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def add(self, row: int, guards: Sequence[RowGuard]) -> None:
        """Put the guards that are to act on a fresh row. Raises KeyError for an unknown one."""
        found = [self._index[guard.name] for guard in guards]
        self.remove(row)

        def appended(column: Tensor, values: Sequence[float]) -> Tensor:
            more = torch.tensor(values, dtype=column.dtype, device=column.device)
            return torch.cat([column, more])

        if self._memory is not None:
            fresh = self._memory.new_zeros(len(found), *self._memory.shape[1:])
            self._memory = torch.cat([self._memory, fresh])
        self.rows = appended(self.rows, [row] * len(found))
        self._guide = appended(self._guide, [guide for guide, _ in found])
        self._guard = appended(self._guard, [guard for _, guard in found])
        self._strength = appended(self._strength, [guard.strength for guard in guards])
        self._text = None

    def move(self, source: int, target: int) -> None:
        """Let the request on row `source` live on row `target` from now on."""
        self.remove(target)
        self.rows = torch.where(self.rows == source, target, self.rows)

    def remove(self, row: int) -> None:
        """Forget the request on `row`."""
        keep = self.rows != row
        if bool(keep.all()):
            return
        self.rows, self._guide, self._guard = (
            column[keep] for column in (self.rows, self._guide, self._guard)
        )
        self._strength = self._strength[keep]
        self._memory = None if self._memory is None else self._memory[keep]
        self._text = None

    @property
    def text(self) -> Conditioning:
        """The concepts of the pairs, one row a pair. Only where there are pairs."""
        if self._text is None:
            sizes = torch.tensor([len(guide.names) for guide in self.guides], device=self._device)
            first = sizes.cumsum(0) - sizes
            concepts = concatenated([guide.concepts for guide in self.guides])
            self._text = concepts.select(first[self._guide] + self._guard)
        return self._text

    def combine(
        self,
        unconditional: Tensor,
        conditional: Tensor,
        concept: Tensor,
        *,
        scale: Tensor,
        progress: Tensor,
    ) -> Tensor:
        """The guided predictions `[rows, ...]` of one step.

        `concept [pairs, ...]` was predicted under `text`; `scale` and `progress` are `[rows]`, the
        latter the share of a row's steps that are done.
        """
        if self._memory is None:
            self._memory = torch.zeros_like(concept, dtype=torch.float32)
        pairs = Predictions(
            guard=self._guard,
            strength=self._strength,
            progress=progress[self.rows],
            scale=scale[self.rows],
            unconditional=unconditional[self.rows],
            conditional=conditional[self.rows],
            concept=concept,
            memory=self._memory,
        )
        terms, memory = torch.zeros_like(self._memory), self._memory.clone()
        for number, guide in enumerate(self.guides):
            mine = (self._guide == number).nonzero()[:, 0]
            if len(mine):
                term, kept = guide.term(pairs.select(mine))
                terms[mine], memory[mine] = term, kept
        self._memory = memory
        total = torch.zeros_like(conditional, dtype=torch.float32).index_add_(0, self.rows, terms)
        touched = torch.zeros(len(conditional), dtype=torch.bool, device=self._device)
        touched[self.rows] = True
        each = (-1, *[1] * (conditional.ndim - 1))
        width = scale.to(conditional.dtype).view(each)
        bare = unconditional + width * (conditional - unconditional)
        steered = unconditional + width * (conditional - unconditional - total)
        return torch.where(touched.view(each), steered.to(bare.dtype), bare)
