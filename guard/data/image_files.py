"""Decoding untrusted images: PNG, JPEG and WebP, of bounded size, resized for the model.

The size is read from the header before any pixel is decoded. Each format's decoder is called
directly, so that no other plugin of Pillow can be reached, whatever the file claims to be.
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

MAX_SCANS = 64
"""Of a progressive JPEG, which has ten or so."""
_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition of each Exif orientation."""


class UnusableImage(ValueError):
    """An image cannot be used; the message says why, as in "it is animated"."""


def decode_image(file: bytes, *, width: int, height: int) -> NDArray[np.uint8]:
    """`[height, width, 3]`: the largest central part of the image with that shape, resized.

    The Exif orientation is applied, and transparent parts become white. Raises UnusableImage for
    anything but one whole image of MAX_PIXELS at most.
    """
    try:
        image = _opened(file)
        _check_size(*image.size)
        if getattr(image, "n_frames", 1) > 1:
            raise UnusableImage("it is animated; send one still image")
        transposition = _TRANSPOSITIONS.get(image.getexif().get(_ORIENTATION, 1))
        opaque = _on_white(image)
        oriented = opaque if transposition is None else opaque.transpose(transposition)
        fitted = ImageOps.fit(oriented, (width, height), Image.Resampling.LANCZOS)
    except UnusableImage:
        raise
    except Exception as error:  # decoders raise undocumented errors on damaged files
        raise UnusableImage("it is damaged, or not whole") from error
    return np.asarray(fitted, np.uint8)


def _opened(file: bytes) -> ImageFile.ImageFile:
    """The image; only its header has been read."""
    if not file:
        raise UnusableImage("it has no bytes")
    stream = io.BytesIO(file)
    if file.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(stream)
    if file.startswith(b"\xff\xd8\xff"):
        # each goes over all pixels, though it may be 30 bytes; inside one the marker cannot occur
        if file.count(b"\xff\xda") > MAX_SCANS:
            raise UnusableImage(f"it has more than {MAX_SCANS} scans; save it anew")
        return JpegImageFile(stream)
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP":
        # its decoder allocates the whole image on opening
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
