"""The images of prompts, encoded once by a model's vision tower, and their places in a forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.engines.transformers.vision.base import Features, VisionFamily
from steering.prompt import Media, Prompt

AT_ONCE = 4096
"""Placeholder tokens of the images that the vision tower encodes in one forward; of one image that
has more, all."""


@dataclass(frozen=True)
class PromptImages:
    """The images of one prompt: `features[i]` stands in place of token `places[i]`, which belongs
    to image `numbers[i]`, counted from 1; both int64, `places` ascending."""

    places: NDArray[np.int64]
    numbers: NDArray[np.int64]
    features: Features


@dataclass(frozen=True)
class ForwardImages:
    """The images of all rows of one forward.

    `numbers [rows, keys]`, int64 on the device, is the number of the image that each key belongs
    to, 0 for text. `places [rows, tokens]`, bool, marks the tokens of this forward in whose place
    `features` stand, row by row; `at` are these tokens among `[rows * tokens]`.
    """

    numbers: Tensor
    places: Tensor
    at: Tensor
    features: Features | None

    @property
    def together(self) -> Tensor:
        """`[rows, tokens, keys]`, whether a token and a key belong to the same image."""
        tokens = self.numbers[:, -self.places.shape[1] :, None]
        return (tokens == self.numbers[:, None]) & (tokens > 0)

    @classmethod
    def of(
        cls,
        rows: Sequence[PromptImages | None],
        keys: int,
        *,
        offsets: Sequence[int],
        first: int = 0,
        device: torch.device,
    ) -> ForwardImages | None:
        """`rows` are prompts, of which row i begins in column `offsets[i]` of the `keys` columns;
        columns from `first` on are read in this forward. None where no row has images."""
        if not any(rows):
            return None
        numbers = np.zeros((len(rows), keys), np.int64)
        places = np.zeros((len(rows), keys - first), bool)
        parts = []
        for row, (images, offset) in enumerate(zip(rows, offsets, strict=True)):
            if images is None:
                continue
            column = images.places + offset
            numbers[row, column[column < keys]] = images.numbers[column < keys]
            start, stop = np.searchsorted(column, [first, keys]).tolist()
            places[row, column[start:stop] - first] = True
            if start < stop:
                parts.append(images.features[start:stop])
        return cls(
            torch.from_numpy(numbers).to(device),
            torch.from_numpy(places).to(device),
            torch.from_numpy(np.flatnonzero(places)).to(device),
            Features.joined(parts) if parts else None,
        )


class ImageEncoder:
    """Encodes the images of prompts with the vision tower of `model`."""

    def __init__(self, model: Any, family: VisionFamily) -> None:
        self._model, self._family = model, family
        self._weights = next(model.parameters())

    def check(self, prompt: Prompt) -> None:
        """Raise ValueError for a prompt with media or positions that the model does not take."""
        axes = self._family.axes
        if prompt.positions is not None and len(prompt.positions) != axes:
            raise ValueError(
                f"the prompt has positions on {len(prompt.positions)} axes, and the model takes "
                f"{axes}"
            )
        if prompt.media and prompt.positions is None and axes > 1:
            raise ValueError(
                f"the prompt has images and no positions, and the model takes them on {axes} axes: "
                "give those of VisionFamily.positions"
            )
        tokens = np.array(prompt.tokens)
        for item in prompt.media:
            pixels, places = _pixels(item), _places(tokens, item, self._family.image_token)
            needed = self._family.count(*pixels.shape[:2])
            if len(places) != needed:
                raise ValueError(
                    f"the image at tokens {item.start}..{item.stop} has {len(places)} placeholder "
                    f"tokens, and needs {needed} for its {pixels.shape[0]} x {pixels.shape[1]} "
                    "pixels"
                )

    def encode(self, prompts: Sequence[Prompt]) -> list[PromptImages | None]:
        """The images of each of `prompts`, which `check` has taken; None for text alone.

        Raises ValueError where the tower makes other counts of features than there are
        placeholders.
        """
        items = [item for prompt in prompts for item in prompt.media]
        features: list[Features] = []
        for batch in _batches(items):
            features += self._encoded([_pixels(item) for item in batch])
        rest = iter(features)
        return [self._of_prompt(prompt, [next(rest) for _ in prompt.media]) for prompt in prompts]

    def _encoded(self, images: Sequence[NDArray[np.uint8]]) -> list[Features]:
        device, dtype = self._weights.device, self._weights.dtype
        inputs = {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in self._family.prepare(images).items()
        }
        return self._family.encode(self._model, inputs)

    def _of_prompt(self, prompt: Prompt, features: Sequence[Features]) -> PromptImages | None:
        if not prompt.media:
            return None
        tokens = np.array(prompt.tokens)
        places = [_places(tokens, item, self._family.image_token) for item in prompt.media]
        for each, made in zip(places, features, strict=True):
            if len(each) != len(made):
                raise ValueError(
                    f"the vision tower makes {len(made)} features of an image with {len(each)} "
                    "placeholder tokens: the image processor and the model do not agree"
                )
        numbers = np.repeat(np.arange(1, len(places) + 1), [len(each) for each in places])
        return PromptImages(np.concatenate(places), numbers, Features.joined(features))


def _batches(items: Sequence[Media]) -> Iterator[list[Media]]:
    """The images, in their order, some at a time."""
    batch: list[Media] = []
    tokens = 0
    for item in items:
        tokens += item.stop - item.start
        if batch and tokens > AT_ONCE:
            yield batch
            batch, tokens = [], item.stop - item.start
        batch.append(item)
    if batch:
        yield batch


def _pixels(item: Media) -> NDArray[np.uint8]:
    if isinstance(item.content, str):
        raise ValueError("an image of a prompt is a reference: this engine needs its pixels")
    return item.content


def _places(tokens: NDArray[np.int64], item: Media, image_token: int) -> NDArray[np.int64]:
    """The placeholder tokens of an image in its prompt: its span may hold others between them."""
    return item.start + np.flatnonzero(tokens[item.start : item.stop] == image_token)
