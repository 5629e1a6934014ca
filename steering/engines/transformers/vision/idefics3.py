"""Idefics3 (Laurencon et al. 2024, arXiv 2408.12637) and SmolVLM (Marafioti et al. 2025, arXiv
2504.05299): the image in tiles, with a token for the place of each, and then whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from steering.engines.transformers.vision.base import VisionFamily

_MOST = 4096
"""The longest edge that the image processor takes without another rule."""
_AROUND, _WHOLE = "<fake_token_around_image>", "<global-img>"


class Idefics3(VisionFamily):
    """`Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration`."""

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        self._tile = int(patches / config.scale_factor**2)
        """Placeholder tokens of a tile."""
        self._side = side = int(image_processor.max_image_size["longest_edge"])
        if side != vision.image_size:
            raise ValueError(
                f"the image processor makes tiles of {side} x {side} pixels, and the vision tower "
                f"takes {vision.image_size} x {vision.image_size}: correct preprocessor_config.json"
            )
        self._longest = image_processor.size["longest_edge"]
        if not self._longest or self._longest > _MOST or not image_processor.do_resize:
            raise ValueError(
                f"the image processor must resize images to a longest_edge of at most {_MOST}: "
                "correct size and do_resize in preprocessor_config.json"
            )

    @property
    def names(self) -> frozenset[str]:
        most = -(-self._longest // self._side)
        grid = (_place(row, column) for row in range(most) for column in range(most))
        return super().names | {_AROUND, _WHOLE, *grid}

    def count(self, height: int, width: int) -> int:
        rows, columns = self._grid(height, width)
        return self._tile * (rows * columns + 1)

    def text(self, height: int, width: int) -> str:
        rows, columns = self._grid(height, width)
        tile = self.placeholder * self._tile
        lines = [
            "".join(f"{_AROUND}{_place(row, column)}{tile}" for column in range(columns)) + "\n"
            for row in range(rows)
        ]
        return "".join(lines) + "\n" * bool(rows) + f"{_AROUND}{_WHOLE}{tile}{_AROUND}"

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Tensor]:
        # one list for each image: each has tiles of its own
        nested = [[Image.fromarray(pixels)] for pixels in images]
        return dict(self.image_processor(nested, return_tensors="pt"))

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles, 0 and 0 for the whole image alone.

        As the image processor makes them: the longer side is the longest edge, the other one is
        even, and then both grow to whole tiles. (Its `get_number_of_image_patches` counts other
        rows for some sizes: it takes the other side as it was before the longer one grew.)
        """
        if not self.image_processor.do_image_splitting:
            return 0, 0
        # in this order, for the same rounding
        ratio = width / height
        other = int(self._longest / ratio) if width >= height else int(self._longest * ratio)
        other = max(other + other % 2, 1)
        longest = self._whole_tiles(self._longest)
        ratio = self._longest / other if width >= height else other / self._longest
        other = int(longest / ratio) if width >= height else int(longest * ratio)
        tiles = longest // self._side, self._whole_tiles(other) // self._side
        if tiles == (1, 1):
            return 0, 0
        return tiles[::-1] if width >= height else tiles

    def _whole_tiles(self, pixels: int) -> int:
        return -(-pixels // self._side) * self._side


def _place(row: int, column: int) -> str:
    return f"<row_{row + 1}_col_{column + 1}>"
