"""The tokens of one forward of a packed batch: which ones guards sense, and which ones they change.

The *step* of a token is its position in the request, counted from the last token of the prompt,
which is step 0: earlier tokens of the prompt have negative steps, the n-th generated token has
step n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from steering.hidden.slots import NEVER, on_device


@dataclass(frozen=True)
class PackedForward:
    """One forward: stretch i holds `lengths[i]` tokens of row `rows[i]`, the first at step
    `first[i]`, of a request whose prompt has `prompts[i]` tokens.

    `places [tokens]` are the places of the tokens' keys in the cache; `before(stretches, n)` gives
    the places `[stretches, n]` of the first n tokens of the requests of some stretches, anything
    where a request has fewer. `image [tokens]` marks the placeholder tokens of images, None where
    there is none.
    """

    rows: Sequence[int]
    lengths: Sequence[int]
    first: Sequence[int]
    prompts: Sequence[int]
    places: Tensor
    before: Callable[[NDArray[np.int64], int], Tensor]
    image: Tensor | None = None


@dataclass(frozen=True)
class EndedPrompts:
    """Prompts of some `rows`, whose tokens are at `places [prompts, longest]`; `real` marks those
    that guards decide on, `last` the last one of each prompt."""

    rows: NDArray[np.int64]
    places: Tensor
    real: Tensor
    last: Tensor

    @classmethod
    def of(
        cls, forward: PackedForward, stretches: NDArray[np.int64], device: torch.device
    ) -> EndedPrompts | None:
        """The whole prompts of these stretches; None without any."""
        if not len(stretches):
            return None
        lengths = np.asarray(forward.prompts)[stretches]
        longest = int(lengths.max())
        places = forward.before(stretches, longest)
        token = torch.arange(longest, device=device)
        length = on_device(lengths, device)[:, None]
        # the first token is the attention sink: its state is huge and carries no information
        real = (token < length) & ((token > 0) | (length == 1))
        return cls(np.asarray(forward.rows)[stretches], places, real, token == length - 1)

    def without_last(self) -> EndedPrompts:
        """Their tokens but the last one of each."""
        real = self.real & self.real.roll(-1, 1)
        real[:, -1] = False
        return EndedPrompts(self.rows, self.places, real, self.last)


@dataclass(frozen=True)
class GeneratedTokens:
    """Generated tokens of different rows: their rows and steps, their index among the `sensed`
    tokens and among the `acted` ones (-1: the row has no guard that acts)."""

    rows: NDArray[np.int64]
    steps: NDArray[np.int64]
    sensed: Tensor
    acted: NDArray[np.int64]


@dataclass(frozen=True)
class ForwardTokens:
    """The tokens of a forward that concern guards.

    `sensed` are the indices of the tokens of guarded rows, `sensed_rows` their rows, `places`
    their places in the cache, and `sensed_image` whether they are an image's (None: none of the
    forward is); `acted` are the tokens that guards may change, with `acted_rows` and
    `acted_steps`. `width` is the largest number of acting guards of a row. `prompts` are those that
    end in this forward, None without any. `generated[n]` are the tokens at which the n-th decision
    of a row in this forward is taken.
    """

    sensed: Tensor
    sensed_rows: Tensor
    places: Tensor
    sensed_image: Tensor | None
    acted: Tensor
    acted_rows: Tensor
    acted_steps: Tensor
    width: int
    prompts: EndedPrompts | None
    generated: Sequence[GeneratedTokens]

    @classmethod
    def of(
        cls,
        forward: PackedForward,
        *,
        guarded: NDArray[np.bool_],
        rechecks: NDArray[np.bool_],
        acting: NDArray[np.int64],
        device: torch.device,
    ) -> ForwardTokens | None:
        """None where guards have nothing to do.

        By row: whether it is `guarded`, whether it `rechecks` generated tokens, and how many of its
        guards are `acting`.
        """

        rows, first = np.asarray(forward.rows), np.asarray(forward.first)
        lengths = np.asarray(forward.lengths)
        row = rows.repeat(lengths)
        step = np.arange(len(row)) - (lengths.cumsum() - lengths - first).repeat(lengths)
        sensed = np.flatnonzero(guarded[row])
        acted = np.flatnonzero((acting[row] > 0) & (step >= 0))
        if not len(sensed) and not len(acted):
            return None
        ends = np.flatnonzero((first <= 0) & (first + lengths > 0) & guarded[rows])
        # of the tokens that a row has generated here: its first one, its second one, ...
        nth = (step - np.maximum(first, 1).repeat(lengths))[sensed]
        nth[~(rechecks[row] & (step > 0))[sensed]] = -1
        among_acted = np.full(len(row), -1)
        among_acted[acted] = np.arange(len(acted))
        generated = []
        for count in range(int(nth.max(initial=-1)) + 1):
            among_sensed = np.flatnonzero(nth == count)
            tokens = sensed[among_sensed]
            if len(tokens):
                at = on_device(among_sensed, device)
                generated.append(
                    GeneratedTokens(row[tokens], step[tokens], at, among_acted[tokens])
                )
        of_sensed = on_device(np.stack([sensed, row[sensed]]), device)
        of_acted = on_device(np.stack([acted, row[acted], step[acted]]), device)
        return cls(
            sensed=of_sensed[0],
            sensed_rows=of_sensed[1],
            places=forward.places[of_sensed[0]],
            sensed_image=None if forward.image is None else forward.image[of_sensed[0]],
            acted=of_acted[0],
            acted_rows=of_acted[1],
            acted_steps=of_acted[2],
            width=int(acting[row].max()),
            prompts=EndedPrompts.of(forward, ends, device),
            generated=generated,
        )


@dataclass(frozen=True)
class DueGuards:
    """The guards that are due at each token to act on, with their ages and strengths, `[tokens,
    width]`; where an entry is not `live`, nothing is due and its strength is 0. `any [tokens, 1]`
    marks the tokens with a live entry."""

    guard: Tensor
    age: Tensor
    strength: Tensor
    live: Tensor
    any: Tensor


class RowState(NamedTuple):
    """The state of some rows: the first four are `[rows, most, ...]`, `generated [rows]`."""

    top: Tensor
    valid: Tensor
    fired: Tensor
    start: Tensor
    generated: Tensor

    def widened(self, most: int, pool: int) -> RowState:
        """The same with room for `most` guards and pools of `pool`."""
        more = (0, most - self.fired.shape[1])
        return RowState(
            top=pad(self.top, (0, pool - self.top.shape[2], *more)),
            valid=pad(self.valid, more, value=True),
            fired=pad(self.fired, more, value=-1),
            start=pad(self.start, more, value=NEVER),
            generated=self.generated,
        )


@dataclass
class Snapshots:
    """The state of a row before each of the steps that its last forward has decided, from step
    `first` on: the row's index in a `RowState`, and that state."""

    first: int
    states: Sequence[tuple[int, RowState]]


def residual_stream(hidden: Tensor, residual: Tensor | None) -> Tensor:
    """The residual stream, float32: `hidden`, plus `residual` where there is one that is not yet
    added."""
    return hidden.float() if residual is None else hidden.float() + residual


def merged(deciding: Tensor | None, fresh: Tensor, earlier: Tensor | None) -> Tensor:
    """`fresh [n, most, ...]` for the guards `[n, most]` that are `deciding`, `earlier` for the
    others."""
    if deciding is None or earlier is None:
        return fresh
    mask = deciding.view(*deciding.shape, *[1] * (fresh.ndim - 2))
    return torch.where(mask, fresh, earlier)
