"""The tokens of one forward of a packed batch: which ones guards sense, and which ones they change.

The *step* of a token is its position in the request, counted from the last token of the prompt,
which is step 0: earlier tokens of the prompt have negative steps, the n-th generated token has
step n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class PackedForward:
    """One forward: stretch i holds `lengths[i]` tokens of row `rows[i]`, the first at step
    `first[i]`, of a request whose prompt has `prompts[i]` tokens.

    `places [tokens]` are the places of the tokens' keys in the cache; `before(i, n)` gives the
    places of the first n tokens of the request of stretch i.
    """

    rows: Sequence[int]
    lengths: Sequence[int]
    first: Sequence[int]
    prompts: Sequence[int]
    places: Tensor
    before: Callable[[int, int], Tensor]


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

    `sensed` are the indices of the tokens of guarded rows, `sensed_rows` their rows and `places`
    their places in the cache; `acted` are the tokens that guards may change, with `acted_rows` and
    `acted_steps`. `width` is the largest number of acting guards of a row. `prompts` has the places
    of the prompt of each row whose prompt ends in this forward. `generated[n]` are the tokens at
    which the n-th decision of a row in this forward is taken.
    """

    sensed: Tensor
    sensed_rows: Tensor
    places: Tensor
    acted: Tensor
    acted_rows: Tensor
    acted_steps: Tensor
    width: int
    prompts: Mapping[int, Tensor]
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

        def on_device(values: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(values).to(device)

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
                at = on_device(among_sensed)
                generated.append(
                    GeneratedTokens(row[tokens], step[tokens], at, among_acted[tokens])
                )
        sensed_tokens = on_device(sensed)
        return cls(
            sensed=sensed_tokens,
            sensed_rows=on_device(row[sensed]),
            places=forward.places[sensed_tokens],
            acted=on_device(acted),
            acted_rows=on_device(row[acted]),
            acted_steps=on_device(step[acted]),
            width=int(acting[row].max()),
            prompts={int(rows[i]): forward.before(i, forward.prompts[i]) for i in ends.tolist()},
            generated=generated,
        )


@dataclass(frozen=True)
class DueGuards:
    """The guards that are due at each token to act on, with their ages and strengths, `[tokens,
    most]`; where an entry is not `live`, nothing is due and its strength is 0. `any [tokens, 1]`
    marks the tokens with a live entry."""

    guard: Tensor
    age: Tensor
    strength: Tensor
    live: Tensor
    any: Tensor


class RowState(NamedTuple):
    """The state of some rows: the first four are `[rows, guards, ...]`, `generated [rows]`."""

    top: Tensor
    valid: Tensor
    fired: Tensor
    start: Tensor
    generated: Tensor


@dataclass
class Snapshots:
    """The state of a row before each of the steps that its last forward has decided, from step
    `first` on: the row's index in a `RowState`, and that state."""

    first: int
    states: Sequence[tuple[int, RowState]]


def residual_stream(hidden: Tensor, residual: Tensor | None, tokens: Tensor) -> Tensor:
    """The residual stream at these tokens, float32: `hidden`, plus `residual` where there is one
    that is not yet added."""
    states = hidden[tokens].float()
    return states if residual is None else states + residual[tokens]


def merged(deciding: Tensor | None, fresh: Tensor, earlier: Tensor | None) -> Tensor:
    """`fresh [n, guards, ...]` for the guards that are `deciding`, `earlier` for the others."""
    if deciding is None or earlier is None:
        return fresh
    mask = deciding.view(-1, *[1] * (fresh.ndim - 2))
    return torch.where(mask, fresh, earlier)
