"""Images that clients upload, and the bounds on them."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from guard.data.image_files import (
    PixelBudget,
    UnusableImage,
    decode_image,
    decode_whole,
    kind_of,
)
from server.errors import InvalidParameter, UnsupportedParameter
from server.wire.schemas.conversation import ImageUpload

DECODED_AT_ONCE = 2
"""Uploads that are decoded at the same time: at worst, each takes some hundred megabytes."""

MAX_IMAGE_BYTES = 20 * 2**20
"""Of one image of a conversation, decoded from base64."""
_TYPES = {"", "image/png", "image/jpeg", "image/jpg", "image/webp", "image/*"}
"""Media types that data URLs may name: two of them are no types, but some clients write them."""
_ALPHABET, _SPACE = bytes.maketrans(b"-_", b"+/"), b"\t\r\n"


def decode_upload(file: bytes, *, width: int, height: int) -> NDArray[np.uint8]:
    """`decode_image` with InvalidParameter in place of UnusableImage."""
    try:
        return decode_image(file, width=width, height=height)
    except UnusableImage as error:
        raise InvalidParameter(f"'image' cannot be used: {error}.", param="image") from error


def decode_uploads(images: Sequence[ImageUpload]) -> list[NDArray[np.uint8]]:
    """The pixels `[height, width, 3]` of the images of one conversation, each in its own size.

    Raises InvalidParameter and UnsupportedParameter, with the place of the image as `param`. To be
    called beside the event loop.
    """
    budget = PixelBudget()
    return [_pixels(image, budget) for image in images]


def _pixels(image: ImageUpload, budget: PixelBudget) -> NDArray[np.uint8]:
    if not image.is_exact and image.media_type not in _TYPES:
        raise UnsupportedParameter(
            f"'{image.param}' has the type '{image.media_type[:80]}'; this server takes image/png, "
            "image/jpeg and image/webp.",
            param=image.param,
        )
    file = file_of(image)
    kind = kind_of(file)
    if image.is_exact and kind is not None and kind != image.media_type:
        raise InvalidParameter(
            f"'{image.param}' does not match its media type: it is {kind}, not {image.media_type}.",
            param=image.param,
        )
    try:
        return decode_whole(file, budget)
    except UnusableImage as error:
        raise InvalidParameter(
            f"The image in '{image.param}' cannot be used: {error}.", param=image.param
        ) from error


def file_of(image: ImageUpload) -> bytes:
    """The file of an image. White space, missing padding and the alphabet of URLs (RFC 4648,
    section 5) are taken, as browsers and clients write them. Raises InvalidParameter."""
    if len(image.data) > 2 * MAX_IMAGE_BYTES:
        raise _too_large(image)
    try:
        data = image.data.encode("ascii").translate(_ALPHABET, _SPACE).rstrip(b"=")
        file = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except ValueError:
        raise InvalidParameter(
            f"The image in '{image.param}' is not valid base64.", param=image.param
        ) from None
    if len(file) > MAX_IMAGE_BYTES:
        raise _too_large(image)
    return file


def _too_large(image: ImageUpload) -> InvalidParameter:
    return InvalidParameter(
        f"The image in '{image.param}' has more than {MAX_IMAGE_BYTES} bytes; send a smaller one.",
        param=image.param,
    )
