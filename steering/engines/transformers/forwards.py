"""Forwards of a language model, or of that in a vision-language model, with masks of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from steering.engines.transformers.vision.base import VisionFamily
from steering.engines.transformers.vision.images import ForwardImages
from steering.prompt import Prompt


class LanguageForward:
    """Runs `model`, of which `family` is that of its images, None for a model of text alone."""

    def __init__(self, model: Any, family: VisionFamily | None) -> None:
        self._model, self._family = model, family
        weights = next(model.get_decoder().parameters())
        self.device: torch.device = weights.device
        self._dtype = weights.dtype
        config = model.config.get_text_config()
        layer_types = set(getattr(config, "layer_types", None) or ())
        self._sliding = config.sliding_window if "sliding_attention" in layer_types else None
        # checkpoints of models without windows may have the entry too: their class does not know it
        windowed = not layer_types and hasattr(type(config), "sliding_window")
        self._window = config.sliding_window if windowed else None
        self.layers = int(config.num_hidden_layers)
        self.images_are_whole = family is not None and family.whole
        """Whether the tokens of an image attend to each other in both directions."""

    def logits(
        self,
        ids: Tensor,
        positions: Tensor,
        visible: Tensor,
        index: Tensor,
        keys: Tensor,
        *,
        cache: Cache | None = None,
        images: ForwardImages | None = None,
        last: int = 1,
    ) -> Tensor:
        """Logits `[rows, last, vocabulary]` of the last columns, 0 for all.

        `ids [rows, tokens]`; `positions [rows, tokens]`, or `[axes, rows, tokens]`; `visible [rows,
        tokens, keys]` is the causal mask; `index [rows, tokens]` and `keys [rows, keys]` count the
        tokens of each row, for windows.
        """
        masks = self._masks(visible, index, keys, images)
        arguments = {"past_key_values": cache, "use_cache": cache is not None}
        if self._family is None:
            output = self._model(
                input_ids=ids,
                attention_mask=masks,
                position_ids=positions,
                logits_to_keep=last,
                **arguments,
            )
            return output.logits  # type: ignore[no-any-return]
        # the decoder itself, as the whole model runs it: images are in its input
        embeddings = self._model.get_input_embeddings()(ids)
        if images is not None and images.features is not None:
            made = images.features.embeddings.to(embeddings.dtype)
            embeddings = embeddings.flatten(0, 1).index_copy(0, images.at, made).view_as(embeddings)
            arguments |= self._family.arguments(images.places, images.features)
        states = self._model.get_decoder()(
            inputs_embeds=embeddings, attention_mask=masks, position_ids=positions, **arguments
        )
        head = self._model.get_output_embeddings()
        return head(states.last_hidden_state[:, -last:])  # type: ignore[no-any-return]

    def states(
        self,
        ids: Tensor,
        positions: Tensor,
        visible: Tensor,
        index: Tensor,
        keys: Tensor,
        *,
        cache: Cache | None = None,
    ) -> Tensor:
        """The states `[rows, tokens, width]` after the last layer and its norm, of texts without
        images; arguments as those of `logits`."""
        output = self._model.get_decoder()(
            input_ids=ids,
            attention_mask=self._masks(visible, index, keys, None),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _masks(
        self, visible: Tensor, index: Tensor, keys: Tensor, images: ForwardImages | None
    ) -> Any:
        if images is not None and self.images_are_whole:
            visible = visible | images.together
        full = self._additive(visible)
        window = self._sliding or self._window
        if window is None:
            return full
        near = index[:, :, None] - keys[:, None, :] < window
        sliding = self._additive(visible & near)
        if self._sliding is None:
            return sliding
        return {"full_attention": full, "sliding_attention": sliding}

    def _additive(self, visible: Tensor) -> Tensor:
        blocked = torch.finfo(self._dtype).min
        mask = torch.zeros(visible.shape, dtype=self._dtype, device=self.device)
        return mask.masked_fill_(~visible, blocked)[:, None]


def prompt_positions(prompts: Sequence[Prompt], index: Tensor, axes: int) -> Tensor:
    """The positions of the tokens `index [rows, tokens]` of prompts, as a decoder takes them: on
    one axis `[rows, tokens]`, else `[axes, rows, tokens]`. Past the end of a prompt: any."""
    if all(prompt.positions is None for prompt in prompts):
        return index if axes == 1 else index.expand(axes, *index.shape)
    rows = []
    for prompt, tokens in zip(prompts, index, strict=True):
        counted = torch.tensor(prompt.positions or (range(len(prompt)),) * axes)
        rows.append(counted.to(index.device)[:, tokens.clamp(max=len(prompt) - 1)])
    positions = torch.stack(rows, 1)
    return positions if axes > 1 else positions[0]
