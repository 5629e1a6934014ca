"""Which blocks of vLLM's cache hold all tokens of a request."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

import torch  # noqa: E402
from vllm.v1.kv_cache_interface import (  # noqa: E402
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    RSWASpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from steering.engines.errors import Unsupported  # noqa: E402
from steering.engines.vllm.cache import CacheLayout, keep_all_tokens


def attending(kind: Any, block_size: int = 16, **more: Any) -> Any:
    return kind(block_size=block_size, num_kv_heads=1, head_size=8, dtype=torch.float32, **more)


FULL = attending(FullAttentionSpec)
SLIDING = attending(SlidingWindowSpec, 32, sliding_window=64)
CHUNKED = attending(ChunkedLocalAttentionSpec, attention_chunk_size=128)
RECURRENT = MambaSpec(block_size=512, shapes=((4, 4),), dtypes=(torch.float32,))
FREED = attending(RSWASpec, rswa_window=64)


def config(*groups: KVCacheSpec, draft: int | None = None) -> KVCacheConfig:
    made = [
        KVCacheGroupSpec([f"layer.{i}"], spec, is_eagle_group=i == draft)
        for i, spec in enumerate(groups)
    ]
    return KVCacheConfig(num_blocks=10, kv_cache_tensors=[], kv_cache_groups=made)


def uniform(*specs: KVCacheSpec) -> KVCacheSpec:
    by_layer = {f"layer.{i}": spec for i, spec in enumerate(specs)}
    return UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs=by_layer)


@pytest.mark.parametrize(
    ("caches", "layout"),
    [
        (config(FULL), CacheLayout(0, 16, 160)),
        (config(SLIDING, SLIDING, FULL), CacheLayout(2, 16, 160)),
        (config(RECURRENT, attending(FullAttentionSpec, 64)), CacheLayout(1, 64, 640)),
        (config(CHUNKED, uniform(FULL, FULL)), CacheLayout(1, 16, 160)),
        # drafts are not sensed, and may lag behind
        (config(FULL, SLIDING, FULL, draft=0), CacheLayout(2, 16, 160)),
        (config(FREED, FULL), CacheLayout(1, 16, 160)),
    ],
)
def test_gates_are_kept_beside_the_keys_of_all_tokens(
    caches: KVCacheConfig, layout: CacheLayout
) -> None:
    assert CacheLayout.of(caches) == layout
    assert layout.block(3) == slice(3 * layout.block_size, 4 * layout.block_size)


@pytest.mark.parametrize(
    "caches",
    [
        config(),
        config(SLIDING),
        config(RECURRENT),
        config(CHUNKED, SLIDING),
        config(FREED),
        config(uniform(FULL, FREED)),
    ],
)
def test_a_cache_that_frees_tokens_is_refused(caches: KVCacheConfig) -> None:
    with pytest.raises(Unsupported, match="a layer that attends to all tokens"):
        CacheLayout.of(caches)


def test_where_all_layers_slide_the_widest_keep_their_blocks() -> None:
    wider = attending(SlidingWindowSpec, 32, sliding_window=96, extra_retained_tokens=2)
    specs: dict[str, KVCacheSpec] = {"a": SLIDING, "b": wider, "c": RECURRENT, "d": wider}
    keep_all_tokens(specs, 16)
    kept = attending(FullAttentionSpec, 16, sliding_window=96)
    assert specs == {"a": SLIDING, "b": kept, "c": RECURRENT, "d": kept}


def test_chunks_are_kept_too() -> None:
    specs: dict[str, KVCacheSpec] = {"a": CHUNKED, "b": SLIDING}
    keep_all_tokens(specs, 16)
    assert specs == {"a": attending(FullAttentionSpec, attention_chunk_size=128), "b": SLIDING}


@pytest.mark.parametrize("specs", [{"a": FULL, "b": SLIDING}, {"a": RECURRENT}, {}])
def test_other_caches_stay_as_they_are(specs: dict[str, KVCacheSpec]) -> None:
    before = dict(specs)
    keep_all_tokens(specs, 16)
    assert specs == before
