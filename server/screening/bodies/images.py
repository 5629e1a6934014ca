"""The images of a JSON body or a form, with their places."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guard.config.policy_schema import Place
from guard.data.image_files import kind_of

PICTURES = "pictures"
"""The kind of content that images are, in verdicts and among what may pass unscreened."""
_DATA_URL = re.compile(r"\s{0,16}data:image/", re.IGNORECASE)
_DATA_URL_IN_TEXT = re.compile(
    r"data:image/[^\s,;]{1,40}(?:;[^\s,;]{1,80}){0,4};base64,[A-Za-z0-9+/_=%-]{32,}+",
    re.IGNORECASE,
)
"""No file of an image has less than 32 characters; a text about data URLs may."""
_BARE_IMAGE = re.compile(r"(?:.*[.\]])?(?:image|mask|images)(?:\[\d+\])*")
"""The places of members in which services of images take base64 alone."""
_START = 16
"""The characters of base64 that tell the kind of a file."""
_RESULT = re.compile(r"data\[\d+\]\.url")
"""Where answers of `/v1/images/...` give an image by its address."""
_EVENT = re.compile(r"image_(generation|edit)\.(partial_image|completed)")


@dataclass(frozen=True, slots=True, repr=False)
class JsonImage:
    """An image of a body: `value` is a file, an address, a data URL or base64; None for a part with
    an image by reference, unless that part has further images in it.

    `is_text`: the value is read as a text too, since its field is none for images.
    """

    value: str | bytes | None
    place: Place
    path: str
    is_text: bool = False


def images_in(text: str, path: str) -> list[str]:
    """The images that a text is or has in it: data URLs, and base64 at a place of images."""
    if _DATA_URL.match(text) or (_BARE_IMAGE.fullmatch(path) and _is_bare_image(text)):
        return [text]
    return _DATA_URL_IN_TEXT.findall(text) if "data:image/" in text.lower() else []


def _is_bare_image(text: str) -> bool:
    start = "".join(text[: 4 * _START].split())[:_START]
    try:
        return kind_of(base64.b64decode(start, b"-_")) is not None
    except ValueError:
        return False


def has_no_image_yet(part: Mapping[str, Any]) -> bool:
    """Whether a part is the call of a tool that has drawn nothing so far."""
    return part.get("type") == "image_generation_call" and part.get("result") is None


def is_address_of_image(path: str) -> bool:
    """Whether a text at this place of an answer says where an image of it can be fetched."""
    return _RESULT.fullmatch(path) is not None


def lacks_its_image(event: Mapping[str, Any], images: Sequence[JsonImage]) -> bool:
    """Whether an event of `/v1/images/...` that has an image is without one that was found."""
    return not images and _EVENT.fullmatch(str(event.get("type"))) is not None


def lacks_images(answer: Any, images: Sequence[JsonImage]) -> bool:
    """Whether an answer of `/v1/images/...` has a result without an image that was found in it."""
    results = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(results, list):
        return True
    found = {image.path.partition(".")[0] for image in images}
    return any(f"data[{index}]" not in found for index in range(len(results)))


def without_parts(images: Sequence[JsonImage]) -> list[JsonImage]:
    """The images without those parts whose images are among them, each value once at its path,
    which strings of JSON and lists in them share."""
    paths = [image.path for image in images if image.value is not None]
    values = [
        image
        for image in images
        if image.value is not None
        or not any(path.startswith((f"{image.path}.", f"{image.path}[")) for path in paths)
    ]
    return list({(image.path, image.is_text, image.value): image for image in values}.values())
