"""The output seam: guards that read a finished image before it is returned.

They read the finished latents, `[rows, channels, (frames,) height, width]`. Every loaded guard of
one method is stacked into one `OutputGuards`, and an `OutputBank` holds one stack a method. These
guards read and do not act: the policy's fallback decides about an image that shows the concept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from steering.hidden.rows import RowGuard
from steering.images.embedding import ImageReading


class OutputGuards(Protocol):
    """All loaded guards of one method, stacked; column i is the guard `names[i]`."""

    names: Sequence[str]
    channels: int

    def sense(self, latents: Tensor, columns: Sequence[int]) -> Tensor:
        """Scores `[rows, columns]` of these guards.

        Larger means more of the concept; NaN for a row that is not finite.
        """


class OutputBank:
    """The output guards of one model. Immutable; swap the whole bank to change it.

    Raises ValueError for two guards of one name.
    """

    def __init__(self, stacks: Sequence[OutputGuards] = ()) -> None:
        self.stacks = tuple(stacks)
        self.names = tuple(name for stack in stacks for name in stack.names)
        if len(set(self.names)) != len(self.names):
            raise ValueError("two guards of a bank have the same name")

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def read(
        self, latents: Tensor, guards: Sequence[Sequence[RowGuard]]
    ) -> tuple[dict[str, ImageReading], ...]:
        """The readings of the guards of each row on `latents`.

        `guards[i]` are those that row i carries, all of this bank. A reading that has fired is not
        resolved. Raises KeyError for an unknown guard.
        """
        if unknown := sorted({guard.name for row in guards for guard in row} - {*self.names}):
            raise KeyError(f"no guard {', '.join(unknown)} in the bank")
        readings: list[dict[str, ImageReading]] = [{} for _ in guards]
        wanted = {guard.name for row in guards for guard in row}
        for stack in self.stacks:
            columns = [i for i, name in enumerate(stack.names) if name in wanted]
            if not columns:
                continue
            names = [stack.names[i] for i in columns]
            scores = stack.sense(latents, columns).tolist()
            for row, values, carried in zip(readings, scores, guards, strict=True):
                score_of = dict(zip(names, values, strict=True))
                row |= {
                    guard.name: _reading(score_of[guard.name], guard.threshold)
                    for guard in carried
                    if guard.name in score_of
                }
        return tuple(readings)


def _reading(score: float, threshold: float) -> ImageReading:
    valid = math.isfinite(score)
    fired = valid and score > threshold
    return ImageReading(score, threshold, fired, valid=valid, resolved=not fired)
