"""Calls of a caller's transformers model: which of them guards can follow, and what they run on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from steering.engines.errors import Unfollowed

_ONE_BY_ONE = frozenset({"greedy_search", "sample"})
"""Modes of generation that append one token to each row a forward."""

_REFUSED = {
    "assistant_model": "drafts of several tokens",
    "custom_generate": "a decoding method of the caller's",
    "negative_prompt_ids": "a second forward for guidance",
    "prefill_chunk_size": "a prompt in chunks",
}
"""Arguments of `generate` that guards cannot follow where they are given, and what they bring."""

_MEDIA = ("pixel_values", "image_embeds", "mm_encoder_outputs", "input_features")
"""How the names of arguments of a forward begin that hold images, or what an encoder made of
them."""

_PACKED = ("cu_seq_lens_q", "cu_seqlens", "block_table", "seq_idx")
"""Arguments of a forward that packs several sequences into one row."""


def require_followed(model: Any, generate: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Raise Unfollowed for a call of `generate` that guards cannot follow, and TypeError for
    arguments that it does not take."""
    arguments = signature(generate).bind(*args, **kwargs).arguments
    arguments |= arguments.pop("kwargs", {})
    given = arguments.get("generation_config")
    config = copy.copy(model.generation_config if given is None else given)
    for name, brings in _REFUSED.items():
        if arguments.get(name, getattr(config, name, None)) is not None:
            raise Unfollowed(f"{name} cannot be guarded ({brings}): leave it out")
    cache = arguments.get("past_key_values")
    if cache is not None and _filled(cache):
        raise Unfollowed(
            "past_key_values cannot be guarded (tokens of an earlier call): pass the whole text"
        )
    for name in ("num_beams", "guidance_scale", "prompt_lookup_num_tokens"):
        value = arguments.get(name, getattr(config, name, None))
        if value not in (None, 1):
            raise Unfollowed(f"{name}={value} cannot be guarded: use greedy search or sampling")
    if getattr(config, "cache_implementation", None) == "paged" or (
        arguments.get("cache_implementation") == "paged"
    ):
        raise Unfollowed("a paged cache cannot be guarded: leave cache_implementation out")
    if hasattr(config, "get_generation_mode"):
        for name, value in arguments.items():
            if hasattr(config, name):
                setattr(config, name, value)
        mode = str(getattr(config.get_generation_mode(None), "value", "greedy_search"))
        if mode not in _ONE_BY_ONE:
            raise Unfollowed(f"{mode} cannot be guarded: use greedy search or sampling")


def _filled(cache: Any) -> bool:
    return not hasattr(cache, "get_seq_length") or int(cache.get_seq_length()) > 0


@dataclass(frozen=True)
class ForwardCall:
    """The arguments of one forward: `inputs [rows, tokens, ...]` are ids or embeddings, `past` is
    the number of tokens in the `cache`, `media` hold images, by the argument's name."""

    inputs: Tensor
    mask: Any
    cache: Any
    past: int
    media: Mapping[str, Any]

    @property
    def rows(self) -> int:
        return self.inputs.shape[0]

    @property
    def tokens(self) -> int:
        return self.inputs.shape[1]

    @property
    def inputs_alone(self) -> ForwardCall:
        """The call without its cache, which is large."""
        return replace(self, mask=None, cache=None)

    @classmethod
    def of(cls, names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ForwardCall:
        """`names` are the positional arguments of the model's forward. Raises Unfollowed."""
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        inputs = arguments.get("input_ids")
        if inputs is None:
            inputs = arguments.get("inputs_embeds")
        if not isinstance(inputs, Tensor) or inputs.ndim < 2:
            raise Unfollowed("a forward without input_ids or inputs_embeds cannot be guarded")
        if packed := [name for name in _PACKED if arguments.get(name) is not None]:
            raise Unfollowed(f"{packed[0]} cannot be guarded: run one sequence a row")
        cache = arguments.get("past_key_values")
        if cache is not None and not hasattr(cache, "get_seq_length"):
            kind = type(cache).__name__
            raise Unfollowed(f"a cache that is a {kind} cannot be guarded: pass a Cache, or none")
        past = 0 if cache is None else int(cache.get_seq_length())
        media = {
            name: value
            for name, value in arguments.items()
            if name.startswith(_MEDIA) and value is not None
        }
        return cls(inputs, arguments.get("attention_mask"), cache, past, media)

    def continues(self, earlier: ForwardCall | None) -> bool:
        """Whether this forward without a cache runs the rows of an earlier one, with one more
        token each and the same images. Waits for the device."""
        return (
            earlier is not None
            and (self.rows, self.tokens) == (earlier.rows, earlier.tokens + 1)
            and self.inputs.ndim == earlier.inputs.ndim
            and self.inputs.dtype == earlier.inputs.dtype
            and torch.equal(self.inputs[:, :-1].cpu(), earlier.inputs.cpu())
            and self._has_images_of(earlier)
        )

    def _has_images_of(self, earlier: ForwardCall) -> bool:
        return {*self.media} == {*earlier.media} and all(
            _same(value, earlier.media[name]) for name, value in self.media.items()
        )

    def image(self, config: Any) -> Tensor | None:
        """The placeholder tokens of images, `[rows, tokens]`, of a model with this config; None for
        a model of text alone. Raises Unfollowed for embeddings, which do not tell."""
        names = ("image_token_id", "video_token_id")
        ids = [value for name in names if (value := getattr(config, name, None)) is not None]
        if not ids:
            return None
        if self.inputs.ndim > 2:
            raise Unfollowed(
                "a guard tells the tokens of images from those of the text, and inputs_embeds do "
                "not: pass input_ids and the images"
            )
        return torch.isin(self.inputs, torch.tensor(ids, device=self.inputs.device))

    def real(self, window: int | None) -> Tensor:
        """The tokens that are no padding, `[rows, tokens]`, of a forward without earlier tokens.

        `window` is the model's attention window, if it has one. Raises Unfollowed for a mask of
        another kind, and for padding on the right.
        """
        mask, shape = self.mask, (self.rows, self.tokens)
        if isinstance(mask, Mapping):
            if "full_attention" not in mask:
                raise Unfollowed("only a mask of full attention can be guarded")
            mask, window = mask["full_attention"], None
        if mask is None:
            return torch.ones(shape, dtype=torch.bool, device=self.inputs.device)
        if isinstance(mask, Tensor) and mask.ndim == 4 and len(mask) in (1, self.rows):
            if window is not None and window < self.tokens:
                raise Unfollowed(
                    "a mask of an attention window does not tell which tokens are text"
                )
            # what the last token attends to
            seen = mask[:, 0, -1, : self.tokens]
            mask = (seen if seen.dtype == torch.bool else seen == 0).expand(self.rows, -1)
        if not isinstance(mask, Tensor) or tuple(mask.shape) != shape:
            raise Unfollowed("only an attention_mask of shape [rows, tokens] can be guarded")
        real = mask.bool()
        if not bool(real[:, -1].all()):
            raise Unfollowed("a prompt ends in padding: pad on the left (padding_side='left')")
        return real


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return value.shape == other.shape and torch.equal(value.cpu(), other.cpu())
    return value is other


def positional_names(model: nn.Module) -> list[str]:
    """The names of the positional arguments of the model's forward."""
    parameters = signature(type(model).forward).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return positional[1:]


def cache_of(output: Any) -> Any:
    """The cache in the output of a forward; None where it has none."""
    if isinstance(output, tuple):
        return next((part for part in output if hasattr(part, "get_seq_length")), None)
    return getattr(output, "past_key_values", None)


def last_of(output: Any) -> Tensor | None:
    """What the output of a forward says of the last tokens, `[rows, vocabulary]` or `[rows,
    width]`; None where it says nothing."""
    if isinstance(output, tuple):
        states = output[0] if output else None
    else:
        states = getattr(output, "logits", None)
        if states is None:
            states = getattr(output, "last_hidden_state", None)
    return states[:, -1] if isinstance(states, Tensor) and states.ndim == 3 else None
