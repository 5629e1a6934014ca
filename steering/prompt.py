"""The prompt of a language model, from HTTP or Python to the engine: tokens, media, positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MediaKind = Literal["image"]


@dataclass(frozen=True, slots=True, eq=False)
class Media:
    """An image in a prompt, and the placeholder tokens `tokens[start:stop]` that stand for it.

    `content` is uint8 pixels `[height, width, 3]`, or a reference that only the engine resolves
    (the key of an image that it has already encoded). Raises ValueError for other pixels and for
    an empty span.
    """

    kind: MediaKind
    content: NDArray[np.uint8] | str
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(
                f"the placeholder span {self.start}..{self.stop} is empty or negative: an "
                f"{self.kind} needs at least one placeholder token"
            )
        if isinstance(self.content, str):
            return
        shape = self.content.shape
        if self.content.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(
                f"the pixels of an {self.kind} are {self.content.dtype} {list(shape)}: give uint8 "
                "[height, width, 3]"
            )


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, the media among them, and the position of each token.

    Guards decide on the tokens from number `turn` on: 0, or where the last turn of the user begins.

    A prompt of text alone has no media. `positions` None means `0..n-1`; otherwise there is one
    tuple of `n` positions for each axis, `[axes, tokens]` (M-RoPE has three: time, height, width).

    Raises ValueError where the spans of the media leave the tokens, overlap or are not in
    ascending order, and where an axis has not one position for each token. Whether a model has
    these tokens is checked by who knows its vocabulary (`server.services.prompts`).
    """

    tokens: tuple[int, ...]
    media: tuple[Media, ...] = ()
    positions: tuple[tuple[int, ...], ...] | None = None
    turn: int = 0

    def __post_init__(self) -> None:
        end = 0
        for item in self.media:
            if item.start < end:
                raise ValueError(
                    f"the placeholder span {item.start}..{item.stop} begins before the end of the "
                    f"last one, {end}: spans must be sorted and must not overlap"
                )
            if item.stop > len(self.tokens):
                raise ValueError(
                    f"the placeholder span {item.start}..{item.stop} ends behind the prompt, which "
                    f"has {len(self.tokens)} tokens"
                )
            end = item.stop
        if self.positions is not None:
            self._check_positions(self.positions)

    def __len__(self) -> int:
        """Number of tokens, placeholders included: what usage and context limits count."""
        return len(self.tokens)

    @property
    def next_position(self) -> int:
        """The position of the token behind the prompt, on each axis: the largest one, plus 1."""
        if self.positions is None:
            return len(self.tokens)
        return max((max(axis) for axis in self.positions if axis), default=-1) + 1

    def extended(self, tokens: Sequence[int]) -> Prompt:
        """The prompt with text tokens behind it (an answer), whose positions go on from it."""
        positions, next_ = self.positions, self.next_position
        if positions is not None:
            rest = tuple(range(next_, next_ + len(tokens)))
            positions = tuple((*axis, *rest) for axis in positions)
        return Prompt((*self.tokens, *tokens), self.media, positions, self.turn)

    def require_text(self) -> None:
        """Raise ValueError for media or positions. For engines that take token ids alone: they
        refuse such a prompt instead of dropping a part of it."""
        if self.media:
            kinds = ", ".join(sorted({item.kind for item in self.media}))
            raise ValueError(
                f"this engine takes text alone, and the prompt has media ({kinds}): leave them out"
            )
        if self.positions is not None:
            raise ValueError(
                "this engine numbers the tokens itself, and the prompt has positions: leave them "
                "out"
            )

    def _check_positions(self, positions: Sequence[Sequence[int]]) -> None:
        if not positions:
            raise ValueError("positions have no axis: give None for 0..n-1")
        for number, axis in enumerate(positions):
            if len(axis) != len(self.tokens):
                raise ValueError(
                    f"axis {number} of the positions has {len(axis)} entries for "
                    f"{len(self.tokens)} tokens"
                )
            if any(position < 0 for position in axis):
                raise ValueError(f"axis {number} of the positions has negative entries")


def shared_prefix(prompts: Sequence[Prompt]) -> int:
    """The number of tokens that all prompts begin with; placeholders of images are not shared,
    since each stands for something else."""
    tokens = [prompt.tokens for prompt in prompts]
    low, high = min(tokens), max(tokens)
    pairs = zip(low, high, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), len(low))
    return min([shared, *(item.start for each in prompts for item in each.media)])
