"""Tokens that many sequences begin with, read once: most of a short prompt is the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache

from steering.engines.transformers.layers import decoder_layers
from steering.prompt import Prompt, shared_prefix

WORTH = 8
"""Fewer shared tokens are read again: to copy their keys takes as long."""


def prefix_of(model: Any, prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """The tokens that are worth reading once, which leaves one at least of each prompt; none where
    prompts have images, or the model's layers do not attend to all tokens."""
    plain = all(not prompt.media and prompt.positions is None for prompt in prompts)
    if len(prompts) < 2 or not plain or not _attends_fully(model):
        return ()
    length = min(shared_prefix(prompts), *(len(prompt) - 1 for prompt in prompts))
    return tuple(prompts[0].tokens[:length]) if length >= WORTH else ()


class PrefixCache:
    """The keys and values of a prefix, as one forward over it leaves them: that of the layers that
    it has run."""

    def __init__(self) -> None:
        self.cache: Any = DynamicCache()

    def for_rows(self, rows: int) -> DynamicCache:
        """A cache of their own for so many rows that begin with the prefix."""
        copied = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            copied.update(_repeated(layer.keys, rows), _repeated(layer.values, rows), number)
        return copied


def _repeated(tensor: Tensor, rows: int) -> Tensor:
    return tensor.expand(rows, *[-1] * (tensor.ndim - 1))


def _attends_fully(model: Any) -> bool:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return len(decoder_layers(model)) > 0 and kinds <= {"full_attention"} and not slides
