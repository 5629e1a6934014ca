"""The blocks of a text encoder and their linear layers, found by structure: CLIP, T5, BERT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from guard.errors import ModelError
from guard.fitting.overlays.base import layer_name


@dataclass(frozen=True)
class Block:
    """The linear layers of one block, by the names that overlays have for them: in self-attention,
    whose last one is the projection of its output, and outside it."""

    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]


def blocks_of(encoders: Mapping[str, nn.Module]) -> dict[str, list[Block]]:
    """Encoder → its blocks, first to last. Raises ModelError for one without blocks."""
    return {name: _blocks(name, encoder) for name, encoder in encoders.items()}


def _blocks(component: str, encoder: nn.Module) -> list[Block]:
    lists = [
        (path, module)
        for path, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    for path, module in lists:  # the outermost comes first
        blocks = [_block(component, f"{path}.{i}", block) for i, block in enumerate(module)]
        if all(block.attention and block.feed_forward for block in blocks):
            return blocks
    raise ModelError(
        f"the text encoder {component!r}, a {type(encoder).__name__}, has no blocks of "
        "self-attention and feed-forward layers that can be trained"
    )


def _block(component: str, path: str, block: nn.Module) -> Block:
    names = [name for name, module in block.named_modules() if type(module) is nn.Linear]
    attention = [name for name in names if "att" in name.lower()]
    rest = [name for name in names if name not in attention]
    return Block(
        *(tuple(layer_name(component, f"{path}.{n}") for n in part) for part in (attention, rest))
    )
