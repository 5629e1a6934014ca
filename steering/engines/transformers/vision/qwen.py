"""Qwen2-VL (Wang et al. 2024, arXiv 2409.12191), Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923) and
Qwen3-VL (Bai et al. 2025, arXiv 2511.21631): images of any size, positions on three axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from steering.engines.transformers.vision.base import Features, VisionFamily
from steering.prompt import Media

_NARROWEST = 200
"""The largest ratio of the sides of an image that the image processor takes."""


class Qwen2VL(VisionFamily):
    """`Qwen2VLForConditionalGeneration` and `Qwen2_5_VLForConditionalGeneration`.

    A placeholder token stands for `merge x merge` patches. Text has the same position on all axes
    (time, height, width). The tokens of an image share one in time, and count its rows and columns
    from there on the other two; the text behind it goes on from the largest (section 2.1, M-RoPE).
    """

    axes = 3

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        vision = config.vision_config
        sizes = {
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "merge_size": vision.spatial_merge_size,
        }
        for name, size in sizes.items():
            if (given := getattr(image_processor, name, None)) != size:
                raise ValueError(
                    f"the image processor has {name} {given}, and the vision tower {size}: correct "
                    "preprocessor_config.json"
                )
        self._side = int(vision.patch_size * vision.spatial_merge_size)

    def count(self, height: int, width: int) -> int:
        rows, columns = self._grid(height, width)
        return rows * columns

    def positions(
        self, tokens: Sequence[int], media: Sequence[Media]
    ) -> tuple[tuple[int, ...], ...]:
        """Raises ValueError for media without pixels, or with another number of tokens."""
        parts, end, next_ = [], 0, 0
        for item in media:
            parts.append(_text(next_, item.start - end))
            next_ += item.start - end
            if isinstance(item.content, str):
                raise ValueError("the positions of an image need its pixels, not a reference")
            grid = self._grid(*item.content.shape[:2])
            if grid[0] * grid[1] != item.stop - item.start:
                raise ValueError(
                    f"an image of {grid[0]} x {grid[1]} tokens has {item.stop - item.start} "
                    "placeholder tokens"
                )
            place = np.indices(grid).reshape(2, -1)
            parts.append(next_ + np.concatenate([np.zeros_like(place[:1]), place]))
            next_ += max(grid)
            end = item.stop
        parts.append(_text(next_, len(tokens) - end))
        time, height, width = np.concatenate(parts, axis=1).tolist()
        return tuple(time), tuple(height), tuple(width)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the placeholder tokens of an image of that size in pixels."""
        if max(height, width) > _NARROWEST * min(height, width):
            raise ValueError(
                f"an image of {height} x {width} pixels is too narrow: the longer side may be at "
                f"most {_NARROWEST} times the other one"
            )
        limits = self.image_processor.size
        resized = smart_resize(
            height,
            width,
            factor=self._side,
            min_pixels=limits["shortest_edge"],
            max_pixels=limits["longest_edge"],
        )
        return resized[0] // self._side, resized[1] // self._side


class Qwen3VL(Qwen2VL):
    """`Qwen3VLForConditionalGeneration`: features of earlier blocks of the tower are added behind
    the first decoder layers too (DeepStack, section 2).

    A hook on one of these layers reads and changes what the layer returns, as transformers reports
    it in `hidden_states`: the layer's features are added behind it.
    """

    def encode(self, model: Any, inputs: Mapping[str, Tensor]) -> list[Features]:
        output = model.get_image_features(**inputs)
        return [
            Features(embeddings, tuple(layer[image] for layer in output.deepstack_features))
            for image, embeddings in enumerate(output.pooler_output)
        ]

    def arguments(self, places: Tensor, features: Features) -> dict[str, Any]:
        return {
            "visual_pos_masks": places,
            "deepstack_visual_embeds": [*features.deepstack],
        }


def _text(first: int, count: int) -> NDArray[np.int64]:
    """The positions of `count` tokens of text, `[3, count]`."""
    return np.broadcast_to(np.arange(first, first + count), (3, count))
