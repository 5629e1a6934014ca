"""Prompts of one forward, padded on the left: the last token of each stands in the last column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.engines.transformers.forwards import prompt_positions
from steering.engines.transformers.vision.images import ForwardImages, PromptImages
from steering.hidden.table import EarlierTurns, without_sink
from steering.prompt import Prompt


@dataclass(frozen=True)
class PaddedPrompts:
    """The columns from `first` on: `ids`, `index [rows, tokens]` (a token's number in its prompt,
    negative for padding), `positions` as a decoder takes them, `visible [rows, tokens, width]`;
    `keys [rows, width]` is the index of all columns, `offsets` the padding of each row."""

    ids: Tensor
    positions: Tensor
    visible: Tensor
    index: Tensor
    keys: Tensor
    offsets: Sequence[int]
    seen: Sequence[PromptImages | None]
    first: int = 0

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt],
        seen: Sequence[PromptImages | None],
        axes: int,
        device: torch.device,
    ) -> PaddedPrompts:
        """All columns; `seen` are the prompts' images, `axes` those of positions."""
        width = max(map(len, prompts))
        offsets = [width - len(prompt) for prompt in prompts]
        ids = [
            [0] * offset + list(prompt.tokens)
            for offset, prompt in zip(offsets, prompts, strict=True)
        ]
        column = torch.arange(width, device=device)
        index = column[None] - torch.tensor(offsets, device=device)[:, None]
        visible = (column[:, None] >= column[None])[None] & (index >= 0)[:, None, :]
        return cls(
            torch.tensor(ids, device=device),
            prompt_positions(prompts, index.clamp(min=0), axes),
            visible | torch.eye(width, dtype=torch.bool, device=device)[None],
            index,
            index,
            offsets,
            seen,
        )

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def width(self) -> int:
        """The number of columns of the longest prompt."""
        return self.keys.shape[1]

    def sensed(self, turns: Sequence[int]) -> tuple[Tensor, EarlierTurns | None]:
        """The tokens that guards decide on, `[rows, tokens]`: those of the last turns, of which
        row i's begins at the token `turns[i]`; and those of earlier turns."""
        before = self.index < torch.tensor(turns, device=self.index.device)[:, None]
        real = without_sink(self.index >= 0)
        earlier = EarlierTurns(real & before, end=True) if any(turns) else None
        return real & ~before, earlier

    def part(self, places: Sequence[int], first: int) -> PaddedPrompts:
        """The rows at `places`, from the column `first` on."""
        at, rest = torch.tensor(places, device=self.index.device), slice(first, None)
        return PaddedPrompts(
            self.ids[at, rest],
            self.positions[..., at, rest],
            self.visible[at, rest],
            self.index[at, rest],
            self.keys[at],
            [self.offsets[place] for place in places],
            [self.seen[place] for place in places],
            first,
        )

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """As `LanguageForward.logits` takes them."""
        return self.ids, self.positions, self.visible, self.index, self.keys

    def images(self) -> ForwardImages | None:
        """The images of the forward; None where there is none."""
        return ForwardImages.of(
            self.seen,
            self.width,
            offsets=self.offsets,
            first=self.first,
            device=self.index.device,
        )
