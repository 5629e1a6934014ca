"""LLaVA-NeXT (Liu et al. 2024): the image whole and in tiles, each line of patches with its end."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.llava_next import modeling_llava_next

from steering.engines.transformers.vision.base import VisionFamily
from steering.engines.transformers.vision.llava import require_size, tower_tokens

_model: Any = modeling_llava_next


class LlavaNext(VisionFamily):
    """`LlavaNextForConditionalGeneration`: a grid of tiles that fits the shape of the image, of
    which those patches stay that are no padding."""

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        self._whole = tower_tokens(config)
        vision = config.vision_config
        self._side, self._patches = vision.image_size, vision.image_size // vision.patch_size
        require_size(self, self._side)

    def count(self, height: int, width: int) -> int:
        rows, columns = _model.get_anyres_image_grid_shape(
            (height, width), self.config.image_grid_pinpoints, self._side
        )
        # what the model does to its features, with a tensor that has a shape and no memory
        grid = torch.empty(1, 1, 1).expand(1, rows * self._patches, columns * self._patches)
        _, lines, patches = _model.unpad_image(grid, (height, width)).shape
        return self._whole + int(lines * (patches + 1))
