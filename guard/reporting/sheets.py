"""Pictures in a report: PNG files as base64, small ones enlarged by the page that shows them."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray


def png(picture: NDArray[np.uint8]) -> str:
    """A picture `[height, width, 3]` as a PNG file in base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def uri(encoded: str) -> str:
    """The data URI of a PNG file in base64."""
    return f"data:image/png;base64,{encoded}"
