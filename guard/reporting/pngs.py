"""Images of a report: PNG files in base64; the page enlarges small ones."""

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


def mask_png(mask: NDArray[np.float32]) -> str:
    """A mask `[height, width]` in 0..1 as a grey PNG file in base64."""
    return png(np.repeat((mask * 255).round().astype(np.uint8)[..., None], 3, axis=2))


def overlaid(image: str, mask: str) -> str:
    """An image with red where its mask is white, both PNG files in base64."""
    from PIL import Image

    below = Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")
    above = Image.open(io.BytesIO(base64.b64decode(mask))).convert("L")
    half = above.resize(below.size, Image.Resampling.NEAREST).point(lambda value: value // 2)
    below.paste(Image.new("RGB", below.size, (220, 30, 30)), (0, 0), half)
    return png(np.asarray(below))


def uri(encoded: str) -> str:
    """The data URI of a PNG file in base64, as WebP, since a page has hundreds of them."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    image.save(buffer, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
