"""The decoder layers of a transformers language model, found by structure.

Most architectures have them as a `ModuleList` named `layers` in the decoder that `get_decoder()`
returns; `_PATHS` lists the architectures with another name. A layer returns the residual stream
`[rows, tokens, width]`, as a tensor or as the first entry of a tuple.

Tested: Llama (with the weights of SmolLM2), and Mistral, Qwen2, Qwen3, Gemma, Gemma 2, Gemma 3,
Phi, Phi-3, GPT-2 and GPT-J (with small random weights: hooks, batching and silence, not quality);
with images the families of `steering.engines.transformers.vision`, in the same way.

Refused, since rows of different lengths in one batch would get wrong answers without an error:
layers without attention, or with attention other than full and sliding; ALiBi biases that are built
from a two-dimensional mask; encoder-decoders.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

TESTED = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    *("phi", "phi3", "gpt2", "gptj"),
    # with images
    *("llava", "llava_next", "idefics3", "smolvlm"),
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3"),
)

_PATHS = {"gpt2": "h", "gptj": "h", "falcon": "h", "mpt": "blocks"}
_ATTENTION = {"full_attention", "sliding_attention"}


class UnknownArchitecture(ValueError):
    """The model's decoder layers were not found, or their attention is not supported."""


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of `model`, in order. Raises UnknownArchitecture."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    kind = getattr(config, "model_type", type(model).__name__)
    getter = getattr(model, "get_decoder", None)
    decoder = getter() if callable(getter) else None
    layers = getattr(decoder, _PATHS.get(kind, "layers"), None)
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) != depth:
        raise UnknownArchitecture(
            f"cannot find the decoder layers of a {kind!r} model; tested architectures are "
            f"{', '.join(TESTED)}"
        )
    if reason := _unsupported(config):
        raise UnknownArchitecture(
            f"a {kind!r} model {reason}; tested architectures are {', '.join(TESTED)}"
        )
    return layers


def _unsupported(config: Any) -> str | None:
    unsupported = set(getattr(config, "layer_types", None) or ()) - _ATTENTION
    if unsupported:
        return f"has layers of {', '.join(sorted(unsupported))}, which are not supported"
    if getattr(config, "alibi", False):
        return "with ALiBi positions is not supported"
    if getattr(config, "is_encoder_decoder", False):
        return "has an encoder, which is not supported"
    return None


def even_context(config: Any) -> int | None:
    """The most tokens of a row that leave the positions of its neighbours alone; None for any.

    "longrope" scales the positions of all rows of a batch by its longest one.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [*rope.values()]
    lengths = [
        kind.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    return min(lengths, default=None)


def hidden_of(output: Any) -> Tensor:
    """The residual stream `[rows, tokens, width]` in the output of a decoder layer."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """The output of a decoder layer with its residual stream replaced by `hidden`."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
