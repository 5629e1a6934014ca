"""Images that clients send, and what they are told of those that cannot be used."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from guard.data.image_files import UnusableImage, decode_image
from server.errors import InvalidParameter


def uploaded(file: bytes, *, width: int, height: int) -> NDArray[np.uint8]:
    """As `decode_image`; raises InvalidParameter."""
    try:
        return decode_image(file, width=width, height=height)
    except UnusableImage as error:
        raise InvalidParameter(f"'image' cannot be used: {error}.", param="image") from error
