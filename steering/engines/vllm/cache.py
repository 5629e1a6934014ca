"""Where vLLM's cache of keys has a place for every token of a request, for its whole life.

The gates of guarded tokens are kept beside their keys, by slot (block * size + offset). A model has
one group of blocks for each kind of layer: layers that attend to all tokens keep the blocks of
all of them; sliding windows and chunks free the blocks behind them, and recurrent layers keep a
state in place of tokens. All groups draw their blocks from one pool, so a block belongs to one
group at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    HiddenStateCacheSpec,
    KVCacheSpec,
    RSWASpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
    iter_layer_specs,
    replace_as,
)

from steering.engines.errors import Unsupported


@dataclass(frozen=True)
class CacheLayout:
    """The group whose blocks hold all tokens: its index, the tokens of a block, and the number of
    places (slots) in the pool."""

    group: int
    block_size: int
    places: int

    @classmethod
    def of(cls, config: Any) -> CacheLayout:
        """The layout of a `KVCacheConfig`. Raises Unsupported where no group holds all tokens."""
        # a draft model's group comes last: drafts have no gates
        found = [
            (group.is_eagle_group, index, group.kv_cache_spec.block_size)
            for index, group in enumerate(config.kv_cache_groups)
            # a pool on the host counts its own blocks
            if not group.host_resident
            and all(map(_keeps_all, iter_layer_specs(group.kv_cache_spec)))
        ]
        if not found:
            raise Unsupported(
                "guards need a layer that attends to all tokens, since the scores of a prompt are "
                "kept beside its keys: this model has none, or frees their blocks"
            )
        _, group, block_size = min(found)
        return cls(group, block_size, config.num_blocks * block_size)

    def block(self, number: int) -> slice:
        """The places of a block."""
        return slice(number * self.block_size, (number + 1) * self.block_size)


def keep_all_tokens(specs: dict[str, KVCacheSpec], block_size: int) -> None:
    """Where no layer's blocks hold all tokens, make those of the widest windows do so, in place.

    `specs` are by layer. Layers go on attending to their windows; only their blocks are no longer
    freed, as vLLM itself has it where its hybrid cache manager is switched off.
    """
    if any(map(_keeps_all, specs.values())):
        return
    windows = {name: window for name, spec in specs.items() if (window := _window(spec))}
    widest = max(windows.values(), default=0)
    for name in [name for name, window in windows.items() if window == widest]:
        specs[name] = replace_as(
            specs[name],
            FullAttentionSpec,
            drop=("extra_retained_tokens",),
            block_size=block_size,
        )


def _keeps_all(spec: KVCacheSpec) -> bool:
    """Whether a layer's blocks hold all tokens until the request ends."""
    return isinstance(spec, FullAttentionSpec) and not isinstance(
        # the first frees the blocks of generated tokens, the second holds no keys
        spec,
        RSWASpec | HiddenStateCacheSpec,
    )


def _window(spec: KVCacheSpec) -> int:
    """The tokens that a layer attends to at most, 0 where its blocks cannot be kept."""
    if isinstance(spec, SlidingWindowMLASpec):
        return 0
    if isinstance(spec, SlidingWindowSpec):
        return int(spec.sliding_window)
    return int(spec.attention_chunk_size) if isinstance(spec, ChunkedLocalAttentionSpec) else 0
