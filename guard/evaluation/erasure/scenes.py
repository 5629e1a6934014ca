"""Real pictures as an attacker has them: files brought to the model's size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from guard.errors import DataError
from guard.prompts import ScenePicture
from steering.engines.diffusion.families import Family

MAX_PIXELS = 2**24


def latents_of(family: Family, scenes: Sequence[ScenePicture]) -> Tensor:
    """The latents of the scenes' pictures, `[scenes, channels, height, width]`.

    The middle of each picture, as much of it as has the model's shape, resized. Raises DataError
    for a file that is no picture or larger than MAX_PIXELS, or a model that makes videos.
    """
    size = family.width, family.height
    pixels = np.stack([_pixels(scene.picture, size) for scene in scenes])
    try:
        return family.encode_picture(torch.from_numpy(pixels).float() / 255)
    except ValueError as error:
        raise DataError(f"the model does not take pictures: {error}") from error


def _pixels(path: str, size: tuple[int, int]) -> np.ndarray:
    try:
        # only formats whose decoders are well tried
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: has more than {MAX_PIXELS} pixels")
            fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: is no PNG, JPEG or WebP picture: {error}") from error
    return np.asarray(fitted, np.uint8)
