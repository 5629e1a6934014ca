"""The embedding seam: what guards do to a prompt's conditioning before an image is drawn.

Every loaded guard of one method is stacked into one `EmbeddingGuards`, and a `EmbeddingBank` holds
one screen a method. Both look at all rows and all guards at once; a row that carries none of a
method's guards, or whose guards stay silent, keeps its own bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning, concatenated


@dataclass(frozen=True)
class Refinement:
    """What a screen has made of the rows it was to act on.

    `steps [rows]` counts the updates of a row, `score [rows, guards]` is what the guards say
    afterwards, NaN where a method has no such thing.
    """

    text: Conditioning
    steps: Tensor
    score: Tensor


class EmbeddingGuards(Protocol):
    """All loaded guards of one method, stacked; column i is the guard `names[i]`."""

    names: Sequence[str]

    def sense(self, text: Conditioning) -> Tensor:
        """Scores `[rows, guards]`; larger means more of the concept."""

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        """Rewrite the rows with any `due [rows, guards]`; the others come back bit-identical.

        `threshold` and `strength` are `[rows, guards]`; strength scales the method's own step.
        """


@dataclass(frozen=True)
class ImageReading:
    """What one guard saw and did on one row.

    `after` is its score behind the action, None where it did not act. `resolved` False means that
    it fired and the concept is still there, after it has acted or because it only looks: the
    policy's fallback decides then. `position` is where it looked: 0 for the prompt, n for what n
    evaluations of the network have drawn. A guard that writes to the latents says over what share
    of the image it has (`area`) and how far the likeliest place stood out (`peak`, in deviations
    of the image's places).
    """

    score: float
    threshold: float
    fired: bool
    valid: bool = True
    steps: int = 0
    after: float | None = None
    resolved: bool = True
    position: int = 0
    area: float | None = None
    peak: float | None = None


@dataclass(frozen=True)
class Applied:
    """The conditioning to draw with, and for each row what its guards saw, by name."""

    text: Conditioning
    readings: tuple[dict[str, ImageReading], ...]


class EmbeddingBank:
    """The screens of one model. Immutable; swap the whole bank to change it."""

    def __init__(self, screens: Sequence[EmbeddingGuards] = ()) -> None:
        self.screens = tuple(screens)
        self.names = tuple(name for screen in screens for name in screen.names)
        if len(set(self.names)) != len(self.names):
            raise ValueError("two guards of a bank have the same name")

    def apply(
        self,
        text: Conditioning,
        guards: Sequence[Sequence[RowGuard]],
        overflow: Sequence[Conditioning | None] = (),
    ) -> Applied:
        """Sense and act for fresh rows; `guards[i]` are those that row i carries.

        `overflow[i]` is the conditioning of what row i's prompt says past the encoder's length,
        one window a row, None where all of it fits: it is sensed, though it is not drawn.
        Raises KeyError for a guard that is not in the bank.
        """
        unknown = {guard.name for row in guards for guard in row} - set(self.names)
        if unknown:
            raise KeyError(f"no guard {', '.join(sorted(unknown))} in the bank")
        readings: list[dict[str, ImageReading]] = [{} for _ in guards]
        for screen in self.screens:
            wanted = [{guard.name: guard for guard in row} for row in guards]
            table = [[row.get(name) for name in screen.names] for row in wanted]
            if any(guard is not None for row in table for guard in row):
                text = _consult(screen, text, table, overflow, readings)
        return Applied(text, tuple(readings))


def _consult(
    screen: EmbeddingGuards,
    text: Conditioning,
    table: Sequence[Sequence[RowGuard | None]],
    overflow: Sequence[Conditioning | None],
    readings: Sequence[dict[str, ImageReading]],
) -> Conditioning:
    def filled(value: float, of: str) -> Tensor:
        rows = [[value if guard is None else getattr(guard, of) for guard in row] for row in table]
        return torch.tensor(rows, device=device)

    device = next(iter(text.states.values())).device
    threshold, strength = filled(math.inf, "threshold"), filled(1.0, "strength")
    carried, acts = threshold < math.inf, filled(False, "acts")
    own = screen.sense(text)
    score = _with_overflow(screen, own, overflow)
    valid = score.isfinite()
    # what is not a number is larger than nothing: such a row is invalid, not silent
    fired = carried & valid & (score > threshold)
    due = fired & acts & (own > threshold)
    after, steps = own, torch.zeros(len(table), dtype=torch.long, device=device)
    if bool(due.any()):
        acted = screen.act(text, due, threshold, strength)
        text = text.choose(due.any(1), acted.text)
        after, steps = acted.score, acted.steps
    figures = [tensor.tolist() for tensor in (score, threshold, fired, valid, due, after)]
    for row, (guards, count) in enumerate(zip(table, steps.tolist(), strict=True)):
        for column, guard in enumerate(guards):
            if guard is None:
                continue
            values = [figure[row][column] for figure in figures]
            seen, limit, has_fired, is_valid, acted_on, left = values
            done = acted_on and math.isfinite(left)
            readings[row][guard.name] = ImageReading(
                score=seen,
                threshold=limit,
                fired=has_fired,
                valid=is_valid,
                steps=count if acted_on else 0,
                after=left if done else None,
                resolved=not done or left <= limit,
            )
    return text


def _with_overflow(
    screen: EmbeddingGuards, score: Tensor, overflow: Sequence[Conditioning | None]
) -> Tensor:
    """Each row's largest score, over its own window and those that were cut off."""
    rest = [(row, extra) for row, extra in enumerate(overflow) if extra is not None]
    if not rest:
        return score
    windows = screen.sense(concatenated([extra for _, extra in rest]))
    owner = [row for row, extra in rest for _ in range(extra.rows)]
    index = torch.tensor(owner, device=score.device)[:, None].expand_as(windows)
    return score.scatter_reduce(0, index, windows, "amax")
