"""The decoder layers of vLLM's models, and the residual stream in what a layer returns.

A layer returns its stream in one of three ways:

- most return `(output, residual)`, not yet added, for the next layer's norm to add;
- some return the sum alone, as one tensor or beside None;
- a few return the sum, and beside it a residual that the next layer does not read.

A layer of the first kind has to ask whether it is the first one, which has no residual yet: its
source tells it from one of the third.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from steering.engines.errors import Unsupported

_LISTS = ("layers", "h", "blocks")
"""What models call the list of their decoder layers."""

_FIRST = re.compile(r"\bresidual is (?:not )?None\b")

_UNFOLLOWED = {
    "Gemma3nDecoderLayer": "keep several residual streams",
    "LoopCoderDecoderLayer": "run more than once in a forward",
}
"""Layers by the name of their class, and what they do that guards do not follow."""


def decoder(model: Any) -> Any:
    """The module of a vLLM model that runs the decoder layers of its language model; `start_layer`
    and `end_layer` say which of them run in this pipeline stage. Raises Unsupported."""
    # an encoder of images or speech has layers of its own
    find = getattr(model, "get_language_model", None)
    found = [
        module for module in (find() if find else model).modules() if _layers_of(module) is not None
    ]
    if len(found) != 1:
        raise Unsupported(
            f"the decoder layers of a {_name(model)} are not found: guards cannot follow this "
            "architecture in vLLM"
        )
    return found[0]


def decoder_layers(model: Any) -> Sequence[nn.Module]:
    """The decoder layers of a vLLM model, in order; those that other pipeline stages run are
    there as placeholders. Raises Unsupported."""
    layers = _layers_of(decoder(model))
    assert layers is not None
    for layer in layers:
        if reason := _UNFOLLOWED.get(_name(layer)):
            raise Unsupported(f"the layers of a {_name(model)} {reason}: guards do not follow that")
        if getattr(layer, "use_attn_reduce_scatter_for_moe", False):
            raise Unsupported(
                f"the layers of a {_name(model)} spread the tokens over workers (tensor, data and "
                "expert parallelism together): guards do not follow that, leave one of them out"
            )
    return list(layers)


def has_pending_residual(layer: nn.Module) -> bool:
    """Whether the residual beside a layer's output is not yet added to it. Raises Unsupported for a
    layer without readable source."""
    try:
        source = inspect.getsource(type(layer).forward)
    except (OSError, TypeError) as error:
        raise Unsupported(f"a {_name(layer)} has no source to read: {error}") from error
    return _FIRST.search(source) is not None


def stream_of(output: Any, adds_later: bool) -> tuple[Tensor, Tensor | None]:
    """The two parts `[tokens, width]` of the residual stream in a layer's output; the second is
    None where there is nothing to add. `adds_later` is `has_pending_residual` of the layer. Raises
    Unsupported for any other output."""
    hidden, residual = output, None
    if isinstance(output, tuple) and len(output) == 2:
        hidden, residual = output
    if not _is_stream(hidden) or not (residual is None or _is_stream(residual)):
        raise Unsupported(
            "a decoder layer of this architecture returns neither its states nor states and "
            "residual: guards cannot follow it in vLLM"
        )
    return hidden, residual if adds_later else None


def _layers_of(module: nn.Module) -> nn.ModuleList | None:
    """The decoder layers of a module that runs them, None for another one."""
    lists = [
        each for name in _LISTS if isinstance(each := getattr(module, name, None), nn.ModuleList)
    ]
    return lists[0] if len(lists) == 1 and hasattr(module, "start_layer") else None


def _is_stream(value: Any) -> bool:
    """Whether a value is `[tokens, width]`. The number of tokens is left to the compiler, which
    would fix it."""
    return isinstance(value, Tensor) and value.ndim == 2


def _name(module: Any) -> str:
    return type(module).__name__
