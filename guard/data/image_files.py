"""Decoding untrusted images: PNG, JPEG and WebP, of bounded size, as a model takes them.

The size is read from the header before any pixel is decoded. Each format's decoder is called
directly, so that no other plugin of Pillow can be reached, whatever the file claims to be.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

MAX_PIXELS = 2**24
"""4,096 by 4,096."""

MAX_PIXELS_TOGETHER = 2**26
"""Of the images of one request, which bounds the work on decoding them: four of the largest."""

MAX_PIXELS_KEPT = 2**22
"""2,048 by 2,048. Larger images are reduced to that, which is more than the image processors of
vision-language models leave of them: requests that wait hold their images."""

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


class PixelBudget:
    """The pixels that the images of one request may have together."""

    def __init__(self, pixels: int = MAX_PIXELS_TOGETHER) -> None:
        self.left = self.whole = pixels

    def take(self, pixels: int) -> None:
        """Raises UnusableImage where so many are not left."""
        if pixels > self.left:
            raise UnusableImage(
                f"with it the images have more than {self.whole} pixels together; send fewer, or "
                "smaller ones"
            )
        self.left -= pixels


def decode_image(file: bytes, *, width: int, height: int) -> NDArray[np.uint8]:
    """`[height, width, 3]`: the largest central part of the image with that shape, resized.

    The Exif orientation is applied, and transparent parts become white. Raises UnusableImage for
    anything but one whole image of MAX_PIXELS at most.
    """

    def fitted(image: Image.Image) -> Image.Image:
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)

    return _decoded(file, fitted)


def decode_whole(file: bytes, budget: PixelBudget | None = None) -> NDArray[np.uint8]:
    """`[height, width, 3]`: the whole image in its own size, reduced where it has more than
    MAX_PIXELS_KEPT; its pixels are taken from the `budget`, if there is one.

    Orientation, transparency and errors are those of `decode_image`.
    """
    return _decoded(file, _reduced, budget)


def decode_readings(file: bytes, budget: PixelBudget | None = None) -> list[NDArray[np.uint8]]:
    """What a reader may see of an image: as `decode_whole` gives it, and what other decoders make
    of it, which leave out its transparency or its orientation. Raises UnusableImage."""
    whole = decode_whole(file, budget)
    opened = _opened(file)
    is_turned = opened.getexif().get(_ORIENTATION, 1) in _TRANSPOSITIONS
    if not is_turned and not _has_alpha(opened):
        return [whole]
    bare = _decoded(file, _reduced, flattened=_colours, turned=False)
    return [whole] if np.array_equal(whole, bare) else [whole, bare]


def kind_of(file: bytes) -> str | None:
    """The media type by the first bytes of a file: "image/png", "image/jpeg" or "image/webp"; None
    for any other."""
    if file.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if file.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP":
        return "image/webp"
    return None


def _decoded(
    file: bytes,
    shaped: Callable[[Image.Image], Image.Image],
    budget: PixelBudget | None = None,
    flattened: Callable[[Image.Image], Image.Image] | None = None,
    *,
    turned: bool = True,
) -> NDArray[np.uint8]:
    try:
        image = _opened(file)
        _check_size(*image.size)
        if budget is not None:
            budget.take(image.width * image.height)
        if getattr(image, "n_frames", 1) > 1:
            raise UnusableImage("it is animated; send one still image")
        transposition = _TRANSPOSITIONS.get(image.getexif().get(_ORIENTATION, 1))
        opaque = (flattened or _on_white)(image)
        transposition = transposition if turned else None
        oriented = opaque if transposition is None else opaque.transpose(transposition)
        return np.asarray(shaped(oriented), np.uint8)
    except UnusableImage:
        raise
    except Exception as error:  # decoders raise undocumented errors on damaged files
        raise UnusableImage("it is damaged, or not whole") from error


def _reduced(image: Image.Image) -> Image.Image:
    """The image with at most MAX_PIXELS_KEPT pixels, in its own proportions."""
    pixels = image.width * image.height
    if pixels <= MAX_PIXELS_KEPT:
        return image
    scale = (MAX_PIXELS_KEPT / pixels) ** 0.5
    # cut, not rounded: the product stays within the limit
    size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _opened(file: bytes) -> ImageFile.ImageFile:
    """The image; only its header has been read."""
    if not file:
        raise UnusableImage("it has no bytes")
    stream, kind = io.BytesIO(file), kind_of(file)
    if kind == "image/png":
        return PngImageFile(stream)
    if kind == "image/jpeg":
        # each goes over all pixels, though it may be 30 bytes; inside one the marker cannot occur
        if file.count(b"\xff\xda") > MAX_SCANS:
            raise UnusableImage(f"it has more than {MAX_SCANS} scans; save it anew")
        return JpegImageFile(stream)
    if kind == "image/webp":
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
    if _has_alpha(image):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info


def _colours(image: Image.Image) -> Image.Image:
    """The colours of an image, whatever its transparency."""
    return image.convert("RGBA").convert("RGB")
