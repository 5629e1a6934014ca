"""How likely a model finds given answers to its prompts, under guards: all of one prompt at once.

The continuations of a prompt stand side by side behind it in one row (a tree, as in speculative
decoding: Miao et al., SpecInfer, arXiv 2305.09781): each attends to the prompt and to itself, and
has the positions that it has alone. The prompt, which is most of the work, runs once.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.engines.transformers.forwards import LanguageForward, prompt_positions
from steering.engines.transformers.layers import decoder_layers
from steering.engines.transformers.offline import Advance, by_length, nothing
from steering.engines.transformers.vision.base import VisionFamily
from steering.engines.transformers.vision.images import ForwardImages, ImageEncoder
from steering.engines.transformers.whole_sequences import BranchingSequences
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.hidden.seam import HiddenSeam
from steering.prompt import Prompt

BATCH = 16

_PROMPT, _PADDING = 0, -1


@dataclass(frozen=True, slots=True)
class Continued:
    """A prompt and the tokens of its continuations, none of them empty."""

    prompt: Prompt
    continuations: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Losses:
    """Of each continuation -log p, the mean over its tokens and the end behind them; whether any
    guard fired."""

    values: tuple[float, ...]
    fired: bool


@torch.inference_mode()
def continuation_losses(
    model: Any,
    items: Sequence[Continued],
    *,
    end_tokens: Set[int],
    bank: HiddenBank,
    guards: Sequence[RowGuard] = (),
    vision: VisionFamily | None = None,
    batch: int = BATCH,
    advance: Advance = nothing,
) -> list[Losses]:
    """The losses of the continuations of all `items`, in their order, each row under `guards` of
    `bank`: they decide on the prompt, and act as they do while the continuation is generated.

    Any of `end_tokens` ends a continuation. Raises ValueError for an empty prompt or continuation,
    for images that the model does not take, and for guards that overlay linear layers.
    """
    if overlaid := [guard.name for guard in guards if guard.name in bank.overlays]:
        raise ValueError(
            f"{overlaid[0]} overlays linear layers: the likelihood of given answers under it is "
            "not computed"
        )
    if not all(len(i.prompt) and i.continuations and all(i.continuations) for i in items):
        raise ValueError("a prompt or a continuation has no tokens")
    forward = _TreeForward(model, vision, bank, guards)
    try:
        losses: dict[int, Losses] = {}
        for chosen in by_length([item.prompt for item in items], batch):
            rows = [items[i] for i in chosen]
            losses |= zip(chosen, forward(rows, sorted(end_tokens)), strict=True)
            advance(len(chosen))
    finally:
        forward.close()
    return [losses[i] for i in range(len(items))]


class _Layout:
    """Where the tokens of `items` stand in the `[rows, tokens]` of one forward.

    Prompts end in column `width - 1`; the continuations follow one after the other. `branch` is the
    number of a token's continuation, counted from 1, _PROMPT or _PADDING; `index` counts the tokens
    of a sequence.
    """

    def __init__(self, items: Sequence[Continued]) -> None:
        self.width = max(len(item.prompt) for item in items)
        self.offsets = [self.width - len(item.prompt) for item in items]
        longest = max(sum(map(len, item.continuations)) for item in items)
        self.shape = len(items), self.width + longest
        self.ids = np.zeros(self.shape, np.int64)
        self.branch = np.full(self.shape, _PADDING)
        self.index = np.full(self.shape, -1)
        self.columns: list[list[NDArray[np.int64]]] = []
        """By row: the columns of each continuation."""
        for row, item in enumerate(items):
            first, length = self.offsets[row], len(item.prompt)
            self._put(row, first, item.prompt.tokens, _PROMPT, 0)
            self.columns.append([])
            column = self.width
            for number, tokens in enumerate(item.continuations, 1):
                self._put(row, column, tokens, number, length)
                self.columns[row].append(np.arange(column, column + len(tokens)))
                column += len(tokens)

    def _put(self, row: int, column: int, tokens: Sequence[int], branch: int, index: int) -> None:
        there = slice(column, column + len(tokens))
        self.ids[row, there], self.branch[row, there] = tokens, branch
        self.index[row, there] = np.arange(index, index + len(tokens))

    def visible(self, device: torch.device) -> Tensor:
        """`[rows, tokens, keys]`: which keys a token attends to; padding attends to itself."""
        branch = torch.from_numpy(self.branch).to(device)
        column = torch.arange(self.shape[1], device=device)
        queries, keys = branch[:, :, None], branch[:, None]
        causal = column <= column[:, None]
        return causal & ((keys == _PROMPT) | (keys == queries)) & (keys != _PADDING) | torch.eye(
            len(column), dtype=torch.bool, device=device
        )

    def sequences(self) -> tuple[list[NDArray[np.int64]], list[int]]:
        """For `BranchingSequences`: of each continuation the places of its tokens and its prompt's,
        and the length of the prompt."""
        places, prompts = [], []
        for row, continuations in enumerate(self.columns):
            prompt = np.arange(self.offsets[row], self.width)
            for columns in continuations:
                places.append(row * self.shape[1] + np.concatenate([prompt, columns]))
                prompts.append(len(prompt))
        return places, prompts


class _TreeForward:
    """Forwards over prompts with all their continuations. Hooks the model until `close`."""

    def __init__(
        self,
        model: Any,
        vision: VisionFamily | None,
        bank: HiddenBank,
        guards: Sequence[RowGuard],
    ) -> None:
        self._run = LanguageForward(model.eval(), vision)
        self._images = None if vision is None else ImageEncoder(model, vision)
        self._axes = 1 if vision is None else vision.axes
        self._bank, self._guards = bank, guards
        self._seam = HiddenSeam(list(decoder_layers(model)))
        self._seam.install(bank.layers)

    def close(self) -> None:
        """Remove the hooks from the model."""
        self._seam.remove()

    def __call__(self, items: Sequence[Continued], ends: Sequence[int]) -> list[Losses]:
        device, layout = self._run.device, _Layout(items)
        images = self._encoded([item.prompt for item in items], layout)
        index = torch.from_numpy(layout.index).to(device)
        sequences, prompts = layout.sequences()
        marked = None if images is None else images.places
        table = BranchingSequences(
            self._bank, self._guards, sequences, prompts, layout.shape, marked
        )
        reading: AbstractContextManager[None] = nullcontext()
        if table.senses or table.acts:
            reading = self._seam.consulting(table)
        with reading:
            logits = self._run.logits(
                torch.from_numpy(layout.ids).to(device),
                self._positions([item.prompt for item in items], index, layout.width),
                layout.visible(device),
                index,
                index,
                images=images,
                last=layout.shape[1] - layout.width + 1,
            )
        fired = iter(table.flags(slice(0, len(sequences)))[0])
        logprobs = logits.float().log_softmax(-1).cpu()
        return [
            Losses(
                tuple(
                    _loss(logprobs[row], columns - layout.width, tokens, ends)
                    for columns, tokens in zip(layout.columns[row], item.continuations, strict=True)
                ),
                any([next(fired) for _ in item.continuations]),
            )
            for row, item in enumerate(items)
        ]

    def _encoded(self, prompts: Sequence[Prompt], layout: _Layout) -> ForwardImages | None:
        if self._images is None:
            for prompt in prompts:
                prompt.require_text()
            return None
        for prompt in prompts:
            self._images.check(prompt)
        return ForwardImages.of(
            self._images.encode(prompts),
            layout.shape[1],
            offsets=layout.offsets,
            device=self._run.device,
        )

    def _positions(self, prompts: Sequence[Prompt], index: Tensor, width: int) -> Tensor:
        of_prompts = prompt_positions(prompts, index[:, :width].clamp(min=0), self._axes)
        # what a position is ahead of the token's number, which images compress
        ahead = torch.tensor([prompt.next_position - len(prompt) for prompt in prompts])
        behind = (index[:, width:] + ahead.to(index.device)[:, None]).clamp(min=0)
        if self._axes > 1:
            behind = behind.expand(self._axes, *behind.shape)
        return torch.cat([of_prompts, behind], -1)


def _loss(
    logprobs: Tensor, columns: NDArray[np.int64], tokens: Sequence[int], ends: Sequence[int]
) -> float:
    """`logprobs [1 + continuation tokens, vocabulary]` of a row: the first are those behind the
    prompt, and column c of the continuations has those of place c + 1."""
    # each token is predicted at the one before it, the first one at the prompt's last
    before = [0, *(columns[:-1] + 1)]
    said = logprobs[before, list(tokens)].sum()
    end = logprobs[int(columns[-1]) + 1, list(ends)].logsumexp(-1)
    return -float(said + end) / (len(tokens) + 1)
