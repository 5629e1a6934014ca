"""What a family of vision-language models makes of an image; one subclass for each family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from steering.prompt import Media


@dataclass(frozen=True)
class Features:
    """What stands in place of the placeholder tokens of images.

    `embeddings [tokens, width]` enter the first decoder layer in place of the tokens' own;
    `deepstack`, each `[tokens, width]`, are added behind the first layers (Meng et al. 2024,
    arXiv 2406.04334), where the family does that.
    """

    embeddings: Tensor
    deepstack: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        """Number of placeholder tokens."""
        return len(self.embeddings)

    def __getitem__(self, part: slice) -> Features:
        return Features(self.embeddings[part], tuple(each[part] for each in self.deepstack))

    @staticmethod
    def joined(parts: Sequence[Features]) -> Features:
        """The features of several images, one behind the other; at least one."""
        stacks = zip(*(part.deepstack for part in parts), strict=True)
        embeddings = torch.cat([part.embeddings for part in parts])
        return Features(embeddings, tuple(torch.cat(each) for each in stacks))


class VisionFamily(ABC):
    """Images of one model: their placeholder tokens, their pixels and their features.

    `config` is that of the whole model, `image_processor` one of transformers and `tokenizer` the
    model's. Raises ValueError for a configuration that the family cannot run.
    """

    axes: ClassVar[int] = 1
    """Axes of the positions: 3 for M-RoPE, whose decoder takes `[3, rows, tokens]`."""
    whole: ClassVar[bool] = False
    """Whether the tokens of an image attend to each other in both directions."""

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        self.config, self.image_processor = config, image_processor
        self.image_token = int(config.image_token_id)
        """The id of a placeholder token."""
        self.placeholder = str(tokenizer.convert_ids_to_tokens(self.image_token))
        """The name of a placeholder token."""

    @property
    def marker(self) -> str:
        """What a chat template writes in place of an image."""
        return self.placeholder

    @property
    def names(self) -> frozenset[str]:
        """The names of tokens by which a text would seem to hold an image."""
        return frozenset({self.placeholder, self.marker})

    @abstractmethod
    def count(self, height: int, width: int) -> int:
        """Number of placeholder tokens of an image of that size in pixels.

        Raises ValueError for a size that the model does not take.
        """

    def text(self, height: int, width: int) -> str:
        """What stands in the prompt in place of the marker of an image of that size."""
        return self.placeholder * self.count(height, width)

    def positions(
        self, tokens: Sequence[int], media: Sequence[Media]
    ) -> tuple[tuple[int, ...], ...] | None:
        """Positions by axis, `[axes, tokens]`, of a prompt with these images; None for 0..n-1."""
        return None

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Tensor]:
        """The arguments of `get_image_features` for images, uint8 `[height, width, 3]`, on the CPU.

        Raises ValueError for images that the image processor does not take.
        """
        # the axes of an array of 3 x 3 pixels could be taken for others, those of an image cannot
        inputs = self.image_processor([Image.fromarray(p) for p in images], return_tensors="pt")
        return dict(inputs)

    def encode(self, model: Any, inputs: Mapping[str, Tensor]) -> list[Features]:
        """The features of each image of `prepare`, on the device of `inputs`.

        Differentiable in the pixels, unless gradients are off.
        """
        return [Features(each) for each in pooled(model.get_image_features(**inputs))]

    def arguments(self, places: Tensor, features: Features) -> dict[str, Any]:
        """Further arguments of the decoder in a forward with images.

        `places [rows, tokens]`, bool, are the placeholders; `features` are theirs, row by row.
        """
        return {}


def pooled(output: Any) -> Sequence[Tensor]:
    """The features of each image, `[tokens, width]`, in what `get_image_features` returns."""
    parts = getattr(output, "pooler_output", output)
    return [*parts]
