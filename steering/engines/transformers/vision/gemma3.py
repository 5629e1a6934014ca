"""Gemma 3 (Gemma Team 2025, arXiv 2503.19786): one square image of a fixed number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from steering.engines.transformers.vision.base import VisionFamily
from steering.engines.transformers.vision.llava import require_size


class Gemma3(VisionFamily):
    """`Gemma3ForConditionalGeneration`.

    The tokens of an image attend to each other in both directions, in layers with an attention
    window as far as the window goes back. Pan-and-scan (crops of long images beside the whole one)
    is off, as it is in the published processors.
    """

    whole = True

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        self._tokens = int(config.mm_tokens_per_image)
        self._begin = str(tokenizer.convert_ids_to_tokens(config.boi_token_index))
        self._end = str(tokenizer.convert_ids_to_tokens(config.eoi_token_index))
        require_size(self, config.vision_config.image_size)

    @property
    def marker(self) -> str:
        return self._begin

    @property
    def names(self) -> frozenset[str]:
        return super().names | {self._end}

    def count(self, height: int, width: int) -> int:
        return self._tokens

    def text(self, height: int, width: int) -> str:
        # the newlines are one token with those around them: they are no tokens of their own
        placeholders = self.placeholder * self._tokens
        return f"\n\n{self._begin}{placeholders}{self._end}\n\n"

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Tensor]:
        inputs = self.image_processor(
            [Image.fromarray(pixels) for pixels in images],
            do_pan_and_scan=False,
            return_tensors="pt",
        )
        return {"pixel_values": inputs["pixel_values"]}
