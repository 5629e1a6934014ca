"""Where a transformers language model keeps its decoder layers, found by structure.

Most architectures keep them as a `ModuleList` named `layers` under the decoder that
`get_decoder()` returns; `_PATHS` holds those that name it otherwise. A layer is whatever returns
the residual stream `[rows, tokens, width]`, as a tensor or as the first entry of a tuple.

Tested: Llama (with SmolLM2's true weights), and Mistral, Qwen2, Qwen3, Gemma, Gemma 2, Gemma 3 and
Phi-3 (with small random weights: hooks, batching and silence, not quality).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

TESTED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3")

_PATHS = {"gpt2": "h", "gptj": "h", "gpt_neo": "h", "bloom": "h", "falcon": "h", "mpt": "blocks"}


class UnknownArchitecture(ValueError):
    """The model's decoder layers cannot be found."""


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
    return found


def hidden_of(output: Any) -> Tensor:
    """The residual stream in what a decoder layer returned."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """The layer's output with its residual stream replaced."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
