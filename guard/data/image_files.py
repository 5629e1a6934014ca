"""Images that others give: PNG, JPEG and WebP, bounded, brought to the model's size.

Sizes are read off the header before a pixel is decoded. Each format's decoder is called by itself,
so that no other plugin of Pillow is reached, whatever a file says of itself.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

MAX_PIXELS = 2**24
"""4,096 by 4,096."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Of Exif's orientations."""


class UnusableImage(ValueError):
    """Says why, as in "it is animated"."""


def decode_image(file: bytes, *, width: int, height: int) -> NDArray[np.uint8]:
    """`[height, width, 3]`: the middle of the image, as much of it as has that shape, resized.

    It is turned as its Exif data say, and what is transparent lies on white. Raises
    UnusableImage for anything that is not one whole image of MAX_PIXELS at most.
    """
    try:
        image = _opened(file)
        _check_size(*image.size)
        if getattr(image, "n_frames", 1) > 1:
            raise UnusableImage("it is animated; send one still image")
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
        plain = _on_white(image)
        turned = plain if turn is None else plain.transpose(turn)
        fitted = ImageOps.fit(turned, (width, height), Image.Resampling.LANCZOS)
    except UnusableImage:
        raise
    except Exception as error:  # what decoders raise on damaged files is listed nowhere
        raise UnusableImage("it is damaged, or not whole") from error
    return np.asarray(fitted, np.uint8)


def _opened(file: bytes) -> ImageFile.ImageFile:
    """The image, of which nothing but the header has been read."""
    if not file:
        raise UnusableImage("it has no bytes")
    stream = io.BytesIO(file)
    if file.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(stream)
    if file.startswith(b"\xff\xd8\xff"):
        return JpegImageFile(stream)
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP":
        # its decoder makes room for the whole image when it opens one
        _check_size(*_webp_size(file))
        return WebPImageFile(stream)
    raise UnusableImage("it is no PNG, JPEG or WebP file")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnusableImage(f"it has {width} x {height} pixels; {MAX_PIXELS} are the most")


def _webp_size(file: bytes) -> tuple[int, int]:
    """Width and height in the first chunk (RFC 9649, sections 2.5 to 2.7)."""
    kind, body = file[12:16], file[20:]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # grey of 16 bits, which Pillow would cut off at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
