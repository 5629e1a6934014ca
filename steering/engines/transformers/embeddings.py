"""Embeddings of texts from the hidden states of a language model.

The states after the last layer and its norm are pooled, over the tokens of a text or by its last
one, and scaled to length one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.engines.transformers.cache import PromptCache
from steering.engines.transformers.forwards import LanguageForward
from steering.engines.transformers.vision.base import VisionFamily

Pooling = Literal["mean", "last"]


@dataclass
class PartlyRead:
    """A text of which a first part was read: the sum of the pooled states so far."""

    tokens: Sequence[int]
    cache: PromptCache
    summed: Tensor | None = field(default=None, repr=False)


class StateEmbedder:
    """Embeds texts with a causal language model; `vision` as in TransformersEngine."""

    def __init__(self, model: Any, pooling: Pooling, vision: VisionFamily | None = None) -> None:
        self._run = LanguageForward(model, vision)
        self._axes = 1 if vision is None else vision.axes
        self._pooling = pooling

    @torch.inference_mode()
    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """`[len(texts), width]` float32 of length one, in one forward over token ids.

        A text's embedding does not depend on the others, up to the rounding of the products.
        """
        device = self._run.device
        lengths = torch.tensor([len(text) for text in texts], device=device)
        width = int(lengths.max())
        # padding on the right, which causal attention never reads
        ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=device)
        column = torch.arange(width, device=device)
        index = column.expand(len(texts), width)
        states = self._states(ids, index, index)
        if self._pooling == "last":
            pooled = states[torch.arange(len(texts), device=device), lengths - 1]
        else:
            real = (column[None] < lengths[:, None])[..., None]
            pooled = torch.where(real, states, 0.0).sum(1) / lengths[:, None]
        return _unit(pooled)

    def begin(self, tokens: Sequence[int]) -> PartlyRead:
        """Begin to read one long text in parts."""
        return PartlyRead(tokens, PromptCache(self._run.layers, len(tokens)))

    @torch.inference_mode()
    def read(self, text: PartlyRead, most: int) -> NDArray[np.float32] | None:
        """Read at most `most` further tokens; `[1, width]` at the end of the text, None before."""
        device, first = self._run.device, text.cache.past
        last = min(first + most, len(text.tokens))
        ids = torch.tensor([text.tokens[first:last]], device=device)
        keys = torch.arange(last, device=device)[None]
        states = self._states(ids, keys[:, first:], keys, cache=text.cache)
        text.cache.past = last
        if self._pooling == "last":
            text.summed = states[:, -1]
        else:
            part = states.sum(1)
            text.summed = part if text.summed is None else text.summed + part
        return _unit(text.summed) if last == len(text.tokens) else None

    def _states(self, ids: Tensor, index: Tensor, keys: Tensor, **more: Any) -> Tensor:
        visible = keys[:, None, :] <= index[:, :, None]
        positions = index if self._axes == 1 else index.expand(self._axes, *index.shape)
        return self._run.states(ids, positions, visible, index, keys, **more).float()


def _unit(pooled: Tensor) -> NDArray[np.float32]:
    unit = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
    return np.asarray(unit, np.float32)
