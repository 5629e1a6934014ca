"""Embeddings that come without their prompt: which of their tokens are text.

Scores of some methods are means over a prompt's real tokens. In embeddings alone padding cannot be
told from text, and counted as text it waters a concept down. So guards read a row under every
length that its text may have, and it counts as that under which most of them fire, and most
clearly: whatever fires on a prompt fires on its embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steering.engines.errors import Unfollowed
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import EmbeddingBank

_BATCH = 64
"""Rows that are read at once."""
_MANY = 1e9
"""More than margins differ: a length under which more guards fire comes first."""


def with_likely_padding(
    text: Conditioning,
    bank: EmbeddingBank,
    guards: Sequence[RowGuard],
    shortest: Mapping[str, int],
) -> Conditioning:
    """`text` with masks under which the `guards` fire most.

    `shortest` has the streams whose padding is unknown, with the number of tokens that every text
    has. Raises Unfollowed where guards fire under different lengths, but not under one.
    """
    reader = _Reader(bank, guards)
    ever = reader.fired(text)
    for name, least in shortest.items():
        if not reader.depends(text, name, least):
            continue
        tokens = text.masks[name].shape[1]
        device = text.masks[name].device
        best = torch.full((text.rows,), -math.inf, device=device, dtype=torch.float64)
        length = torch.full((text.rows,), tokens, device=device)
        step = max(1, _BATCH // text.rows)
        for first in range(least, tokens + 1, step):
            lengths = range(first, min(first + step, tokens + 1))
            tried = [_cut(text, name, count) for count in lengths]
            for count, fires, rank in zip(lengths, *reader.read(tried), strict=True):
                ever = ever | fires
                better = rank > best
                best, length = torch.where(better, rank, best), length.masked_fill(better, count)
        text = _cut(text, name, length[:, None])
    if bool((ever & ~reader.fired(text)).any()):
        raise Unfollowed(
            "guards fire on different parts of embeddings whose padding is unknown: pass the prompt"
        )
    return text


def _cut(text: Conditioning, name: str, length: int | Tensor) -> Conditioning:
    at = torch.arange(text.masks[name].shape[1], device=text.masks[name].device)
    mask = (at < length).expand_as(text.masks[name])
    return Conditioning(text.states, {**text.masks, name: mask})


class _Reader:
    """The carried guards of a bank, read at once."""

    def __init__(self, bank: EmbeddingBank, guards: Sequence[RowGuard]) -> None:
        carried = {guard.name: guard.threshold for guard in guards}
        self._stacks = [
            (stack, [carried.get(name, math.inf) for name in stack.names])
            for stack in bank.stacks
            if carried.keys() & {*stack.names}
        ]

    def margins(self, text: Conditioning) -> Tensor:
        """How far each guard is over its threshold, `[rows, guards]`; -inf where it is not carried
        or its score is NaN."""
        margins = []
        for stack, thresholds in self._stacks:
            score = stack.sense(text)
            margin = score - torch.tensor(thresholds, device=score.device)
            margins.append(margin.masked_fill(margin.isnan(), -math.inf))
        return torch.cat(margins, 1)

    def fired(self, text: Conditioning) -> Tensor:
        return self.margins(text) > 0.0

    def depends(self, text: Conditioning, name: str, least: int) -> bool:
        """Whether any score depends on the padding of a stream."""
        whole = self.margins(text)
        middle = (least + text.masks[name].shape[1]) // 2
        return not all(
            torch.equal(self.margins(_cut(text, name, length)), whole) for length in (least, middle)
        )

    def read(self, tried: Sequence[Conditioning]) -> tuple[list[Tensor], list[Tensor]]:
        """For each of several masks: which guards fire `[rows, guards]`, and the rank `[rows]`."""
        rows = tried[0].rows
        whole = Conditioning(
            {
                name: states.repeat(len(tried), *[1] * (states.ndim - 1))
                for name, states in tried[0].states.items()
            },
            {name: torch.cat([each.masks[name] for each in tried]) for name in tried[0].masks},
        )
        margins = self.margins(whole)
        fires = margins > 0.0
        clearest = margins.amax(1).double().clamp(-_MANY / 2, _MANY / 2)
        rank = fires.sum(1) * _MANY + clearest
        return [*torch.split(fires, rows)], [*torch.split(rank, rows)]
