"""Images in a report: PNG files as base64, small ones enlarged by the page that shows them."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray


def png(image: NDArray[np.uint8]) -> str:
    """An image `[height, width, 3]` as a PNG file in base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def overlaid(image: str, mask: str) -> str:
    """An image with red over where its mask is white, both PNG files in base64."""
    from PIL import Image

    below = Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")
    above = Image.open(io.BytesIO(base64.b64decode(mask))).convert("L")
    half = above.resize(below.size, Image.Resampling.NEAREST).point(lambda value: value // 2)
    below.paste(Image.new("RGB", below.size, (220, 30, 30)), (0, 0), half)
    return png(np.asarray(below))


def uri(encoded: str) -> str:
    """The data URI of a PNG file in base64, as WebP: a page has hundreds of them."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    image.save(buffer, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
