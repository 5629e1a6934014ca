"""The embedding seam: guards on the conditioning of a prompt, before an image is generated.

A method stacks its guards into one `EmbeddingGuards`; an `EmbeddingBank` holds all stacks that read
prompts. Both take all rows and all guards at once; a row that carries none of a method's guards, or
whose guards stay silent, keeps its bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning, concatenated


@dataclass(frozen=True)
class Refinement:
    """The result of `EmbeddingGuards.act`.

    `steps [rows]` counts the updates of a row; `score [rows, guards]` are the scores afterwards,
    NaN for a method that does not score again. `scale [rows, guards]` multiplies the strength with
    which guards of other seams go on to act (overlays, guidance); None stands for ones.
    """

    text: Conditioning
    steps: Tensor
    score: Tensor
    scale: Tensor | None = None

    @classmethod
    def none(cls, text: Conditioning, strength: Tensor, scale: Tensor | None = None) -> Refinement:
        """Of a method that does not change the conditioning; `strength [rows, guards]`."""
        steps = torch.zeros(text.rows, dtype=torch.long, device=strength.device)
        return cls(text, steps, torch.full_like(strength, torch.nan), scale)


class EmbeddingGuards(Protocol):
    """All loaded guards of one method, stacked; column i is the guard `names[i]`."""

    names: Sequence[str]

    def sense(self, text: Conditioning) -> Tensor:
        """Scores `[rows, guards]`; larger means more of the concept."""

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        """Rewrite the rows with any `due [rows, guards]`; the others come back bit-identical.

        `threshold` and `strength` are `[rows, guards]`; strength scales the method's step.
        """


@dataclass(frozen=True)
class ImageReading:
    """The reading of one guard on one row, and the effect of the guard.

    `after` is the score after the action, None where the guard did not act. `resolved` False means
    that the guard fired and the concept is still there, after it has acted or because it does not
    act: the policy's fallback decides then. `position` is 0 for a reading of the prompt, n for one
    of the output of n evaluations of the network. `scale` multiplies the strength with which the
    guard acts at later seams. A guard that writes to the latents reports the share of the image
    that it has written to (`area`) and how far the likeliest place stood out (`peak`, in standard
    deviations over the image's places).
    """

    score: float
    threshold: float
    fired: bool
    valid: bool = True
    steps: int = 0
    after: float | None = None
    resolved: bool = True
    position: int = 0
    scale: float = 1.0
    area: float | None = None
    peak: float | None = None


@dataclass(frozen=True)
class Applied:
    """The conditioning to generate with, and for each row the readings of its guards, by name."""

    text: Conditioning
    readings: tuple[dict[str, ImageReading], ...]


Encode = Callable[[Sequence[Sequence[RowGuard]]], Conditioning]
"""Encodes the same prompts again, under the text encoder overlays of the guards passed for each
row; a row without guards comes back bit-identical."""


class EmbeddingBank:
    """The stacks of one model that read prompts. Immutable; swap the whole bank to change it.

    `encoding` names the guards that overlay the text encoders. Raises ValueError for two guards of
    one name.
    """

    def __init__(
        self, stacks: Sequence[EmbeddingGuards] = (), encoding: frozenset[str] = frozenset()
    ) -> None:
        self.names = tuple(name for stack in stacks for name in stack.names)
        if len(set(self.names)) != len(self.names):
            raise ValueError("two guards of a bank have the same name")
        self._encoding = encoding
        # these come first: they change the conditioning that all others read
        self.stacks = tuple(sorted(stacks, key=lambda stack: not encoding & {*stack.names}))

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def apply(
        self,
        text: Conditioning,
        guards: Sequence[Sequence[RowGuard]],
        overflow: Sequence[Conditioning | None] = (),
        encode: Encode | None = None,
    ) -> Applied:
        """Sense and act for fresh rows; `guards[i]` are those that row i carries.

        `overflow[i]` is the conditioning of the part of row i's prompt past the encoder's length,
        one window a row, None where all of it fits: guards sense it, though it conditions nothing.
        `encode` is needed where guards overlay the text encoders.

        Raises KeyError for a guard that is not in the bank, and ValueError where `encode` is
        missing.
        """
        unknown = {guard.name for row in guards for guard in row} - set(self.names)
        if unknown:
            raise KeyError(f"no guard {', '.join(sorted(unknown))} in the bank")
        readings: list[dict[str, ImageReading]] = [{} for _ in guards]
        pending = bool(self._encoding)
        for stack in self.stacks:
            if pending and not self._encoding & {*stack.names}:
                text, pending = self._encoded(text, guards, readings, encode), False
            carried = [{guard.name: guard for guard in row} for row in guards]
            table = [[row.get(name) for name in stack.names] for row in carried]
            if any(guard is not None for row in table for guard in row):
                text = _consult(stack, text, table, overflow, readings)
        if pending:
            text = self._encoded(text, guards, readings, encode)
        return Applied(text, tuple(readings))

    def encoding(
        self,
        guards: Sequence[Sequence[RowGuard]],
        readings: Sequence[dict[str, ImageReading]],
    ) -> list[list[RowGuard]]:
        """Of each row the guards that overlay the text encoders and have fired: all texts of its
        request are encoded under them."""
        return [
            acting(row, reading, self._encoding)
            for row, reading in zip(guards, readings, strict=True)
        ]

    def _encoded(
        self,
        text: Conditioning,
        guards: Sequence[Sequence[RowGuard]],
        readings: Sequence[dict[str, ImageReading]],
        encode: Encode | None,
    ) -> Conditioning:
        """The conditioning, with rows encoded again where a guard that overlays the text encoders
        has fired."""
        due = self.encoding(guards, readings)
        if not any(due):
            return text
        if encode is None:
            raise ValueError(
                "guards overlay the text encoders: pass `encode`, which encodes prompts again"
            )
        device = next(iter(text.states.values())).device
        return text.choose(torch.tensor([bool(row) for row in due], device=device), encode(due))


def acting(
    guards: Sequence[RowGuard],
    readings: dict[str, ImageReading],
    among: frozenset[str] | Sequence[str],
) -> list[RowGuard]:
    """The guards of a row that are `among` these names, have fired on its prompt and act.

    Their strength is multiplied by the scale of their readings.
    """
    return [
        guard.scaled(readings[guard.name].scale)
        for guard in guards
        if guard.acts and guard.name in among and readings[guard.name].fired
    ]


def _consult(
    stack: EmbeddingGuards,
    text: Conditioning,
    table: Sequence[Sequence[RowGuard | None]],
    overflow: Sequence[Conditioning | None],
    readings: Sequence[dict[str, ImageReading]],
) -> Conditioning:
    def filled(value: float, field: str) -> Tensor:
        rows = [
            [value if guard is None else getattr(guard, field) for guard in row] for row in table
        ]
        return torch.tensor(rows, device=device)

    device = next(iter(text.states.values())).device
    threshold, strength = filled(math.inf, "threshold"), filled(1.0, "strength")
    carried, acts = threshold < math.inf, filled(False, "acts")
    in_window = stack.sense(text)
    score = _with_overflow(stack, in_window, overflow)
    valid = score.isfinite()
    # NaN compares as not larger: such a row is invalid, not silent
    fired = carried & valid & (score > threshold)
    due = fired & acts & (in_window > threshold)
    after, steps = in_window, torch.zeros(len(table), dtype=torch.long, device=device)
    scale = torch.ones_like(strength)
    if bool(due.any()):
        refined = stack.act(text, due, threshold, strength)
        text = text.choose(due.any(1), refined.text)
        after, steps = refined.score, refined.steps
        scale = scale if refined.scale is None else refined.scale
    # a guard whose scale is NaN has no defined effect
    valid = valid & (scale.isfinite() | ~due)
    figures = [tensor.tolist() for tensor in (score, threshold, fired, valid, due, after, scale)]
    for row, (guards, count) in enumerate(zip(table, steps.tolist(), strict=True)):
        for column, guard in enumerate(guards):
            if guard is None:
                continue
            values = [figure[row][column] for figure in figures]
            score_, limit, has_fired, is_valid, acted, remaining, factor = values
            scored_again = acted and math.isfinite(remaining)
            readings[row][guard.name] = ImageReading(
                score=score_,
                threshold=limit,
                fired=has_fired,
                valid=is_valid,
                steps=count if acted else 0,
                after=remaining if scored_again else None,
                resolved=not scored_again or remaining <= limit,
                scale=factor if acted else 1.0,
            )
    return text


def _with_overflow(
    stack: EmbeddingGuards, score: Tensor, overflow: Sequence[Conditioning | None]
) -> Tensor:
    """Each row's largest score, over its window and the windows past the encoder's length."""
    windows = [(row, extra) for row, extra in enumerate(overflow) if extra is not None]
    if not windows:
        return score
    scores = stack.sense(concatenated([extra for _, extra in windows]))
    owner = [row for row, extra in windows for _ in range(extra.rows)]
    index = torch.tensor(owner, device=score.device)[:, None].expand_as(scores)
    return score.scatter_reduce(0, index, scores, "amax")
