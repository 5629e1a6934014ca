"""Where a transformers language model keeps its decoder layers, found by structure.

Most architectures keep them as a `ModuleList` named `layers` under the decoder that
`get_decoder()` returns; `_PATHS` holds those that name it otherwise. A layer is whatever returns
the residual stream `[rows, tokens, width]`, as a tensor or as the first entry of a tuple.

Tested: Llama (with SmolLM2's true weights), and Mistral, Qwen2, Qwen3, Gemma, Gemma 2, Gemma 3,
Phi, Phi-3, GPT-2 and GPT-J (with small random weights: hooks, batching and silence, not quality).

Refused, since rows of different lengths in one batch would silently get wrong answers: layers that
are no attention, or attention other than full and sliding; ALiBi biases that are built from a
two-dimensional mask; encoder-decoders.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

TESTED = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    *("phi", "phi3", "gpt2", "gptj"),
)

_PATHS = {"gpt2": "h", "gptj": "h", "falcon": "h", "mpt": "blocks"}
_ATTENTION = {"full_attention", "sliding_attention"}


class UnknownArchitecture(ValueError):
    """The model's decoder layers cannot be found, or attend in a way that is not supported."""


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of `model`, in order. Raises UnknownArchitecture."""
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    getter = getattr(model, "get_decoder", None)
    decoder = getter() if callable(getter) else None
    found = getattr(decoder, _PATHS.get(kind, "layers"), None)
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(found, nn.ModuleList) or len(found) != depth:
        raise UnknownArchitecture(
            f"cannot find the decoder layers of a {kind!r} model; tested architectures are "
            f"{', '.join(TESTED)}"
        )
    if reason := _unsupported(config):
        raise UnknownArchitecture(
            f"a {kind!r} model {reason}; tested architectures are {', '.join(TESTED)}"
        )
    return found


def _unsupported(config: Any) -> str | None:
    others = set(getattr(config, "layer_types", None) or ()) - _ATTENTION
    if others:
        return f"has layers of {', '.join(sorted(others))}, which are not supported"
    if getattr(config, "alibi", False):
        return "with ALiBi positions is not supported"
    if getattr(config, "is_encoder_decoder", False):
        return "has an encoder, which is not supported"
    return None


def hidden_of(output: Any) -> Tensor:
    """The residual stream in what a decoder layer returned."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """The layer's output with its residual stream replaced."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
