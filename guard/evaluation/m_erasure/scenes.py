"""Real images as an attacker has them: files, resized to the model's size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guard.data.image_files import UnusableImage, decode_image
from guard.data.prompts import SceneImage
from guard.errors import DataError
from steering.engines.diffusion.families import Family


def latents_of(family: Family, scenes: Sequence[SceneImage]) -> Tensor:
    """The latents of the scenes' images, `[scenes, channels, height, width]`.

    They are resized as images over HTTP are. Raises DataError for a file that is no image or too
    large, or a model that generates videos.
    """
    size = family.width, family.height
    pixels = np.stack([_pixels(scene.image, size) for scene in scenes])
    try:
        return family.encode_image(torch.from_numpy(pixels).float() / 255)
    except ValueError as error:
        raise DataError(f"the model cannot encode images: {error}") from error


def _pixels(path: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        content = Path(path).read_bytes()
        return decode_image(content, width=size[0], height=size[1])
    except (OSError, UnusableImage) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: cannot be used: {reason}") from error
