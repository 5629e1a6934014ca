"""What follows from the images of a body: their screens' findings, and texts to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from guard.plans.screens import TextPlan
from server.screening.bodies.images import (
    PICTURES,
    JsonImage,
    lacks_images,
    lacks_its_image,
    without_parts,
)
from server.screening.bodies.texts import JsonText, JsonTexts
from server.screening.errors import TooManyImages, UnreadableAnswer, UnreadableImage
from server.screening.findings import Findings, ScreenedText, blocks
from server.screening.images.screener import ImageReading, WantedImage

MAX_IMAGES = 64
"""Of one request, one answer or one event."""


class ImageReader(Protocol):
    """Reads images."""

    async def read_images(self, images: Sequence[WantedImage]) -> Sequence[ImageReading]:
        """The reading of each image."""


async def screen_images(
    texts: JsonTexts, findings: Findings, reader: ImageReader, *, in_response: bool = False
) -> list[JsonText]:
    """Read the images of a body; return those that are blocked, as texts that say nothing.

    The text in an image joins the texts of the body, where it cannot be rewritten. An image that
    cannot be read raises UnreadableImage, or UnreadableAnswer, unless the policy is open. Raises
    TooManyImages.
    """
    plan, blocked = findings.plan, []
    images = [image for image in without_parts(texts.images) if plan.reads_images(image.place)]
    if not images:
        return []
    if len(images) > MAX_IMAGES:
        many = f"There are {len(images)} images to be screened; {MAX_IMAGES} are the most at once."
        raise UnreadableAnswer(many) if in_response else TooManyImages(many)
    readings = await reader.read_images([_wanted(image, plan) for image in images])
    for number, (image, reading) in enumerate(zip(images, readings, strict=True), 1):
        results = [
            ScreenedText(screen, float(reading.scores[screen.encoder][screen.head]))
            for screen in plan.images
            if image.place in screen.places
            and screen.head is not None
            and (reading.fault is None or screen.encoder in reading.scores)
        ]
        if blocks(findings.add(results, image.path, in_response=in_response)):
            blocked.append(_piece(image, "", number))
        if reading.fault is not None:
            _fail(image, reading.fault, findings, in_response=in_response)
        if reading.text:
            texts.pieces.append(_piece(image, reading.text, number))
    return blocked


def require_image(event: Mapping[str, Any], texts: JsonTexts, findings: Findings) -> None:
    """`require_images` of an event."""
    _require(lacks_its_image(event, texts.images), findings)


def require_images(answer: Any, texts: JsonTexts, findings: Findings) -> None:
    """Raise UnreadableAnswer where an answer that shows images has one in a form that nothing reads
    here, unless the policy is open or reads no images of answers."""
    _require(lacks_images(answer, texts.images), findings)


def _require(is_lacking: bool, findings: Findings) -> None:
    if is_lacking and findings.plan.reads_images("response"):
        fault = "it is in no form that is known here: have the upstream return b64_json"
        _fail(JsonImage(None, "response", ""), fault, findings, in_response=True)


def unread(texts: JsonTexts, plan: TextPlan) -> dict[str, str]:
    """The kinds of content of a body that nothing reads, each with the member in which it is."""
    kinds = dict(texts.opaque)
    pictures = [image for image in texts.images if not image.is_text]
    if all(plan.reads_images(image.place) for image in pictures):
        kinds.pop(PICTURES, None)
    return kinds


def _wanted(image: JsonImage, plan: TextPlan) -> WantedImage:
    encoders = (screen.encoder for screen in plan.images if image.place in screen.places)
    return WantedImage(image, frozenset(encoders), plan.reads_text_in(image.place))


def _piece(image: JsonImage, text: str, number: int) -> JsonText:
    return JsonText(None, "", text, image.place, image.path, -number, "key")


def _fail(image: JsonImage, fault: str, findings: Findings, *, in_response: bool) -> None:
    plan = findings.plan
    if plan.on_error == "closed":
        if in_response:
            raise UnreadableAnswer(f"The answer has an image that cannot be screened: {fault}")
        raise UnreadableImage(
            f"The policy {plan.policy!r} reads images. {fault}", param=image.path or None
        )
    findings.fail(fault)
    findings.unscreened.add(PICTURES)
