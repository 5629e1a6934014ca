"""Images that clients upload."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from guard.data.image_files import UnusableImage, decode_image
from server.errors import InvalidParameter


def decode_upload(file: bytes, *, width: int, height: int) -> NDArray[np.uint8]:
    """`decode_image` with InvalidParameter in place of UnusableImage."""
    try:
        return decode_image(file, width=width, height=height)
    except UnusableImage as error:
        raise InvalidParameter(f"'image' cannot be used: {error}.", param="image") from error
