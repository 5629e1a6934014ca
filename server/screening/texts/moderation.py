"""`/v1/moderations` in OpenAI's schema: the scores of the screens that a key may use, on texts and
images."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guard.config.schema import Config
from guard.errors import PolicyForbidden
from guard.plans.screens import ImageScreen, TextPlans, TextScreen
from guard.tenants.keys import Principal
from server.auth import allowed_policies
from server.errors import InvalidParameter, MissingParameter
from server.screening.bodies.images import JsonImage
from server.screening.errors import TooManyImages, UnreadableImage, UnscreenedContent
from server.screening.findings import ScreenedText
from server.screening.images.reading import MAX_IMAGES
from server.screening.images.screener import WantedImage
from server.screening.texts.screener import Screener
from server.screening.texts.turns import Caller
from server.wire.schemas.moderations import MAX_TEXTS

MODEL = "inference-guard"


@dataclass(frozen=True, slots=True)
class ModerationScreens:
    """The screens of texts and of images whose results a request may have."""

    texts: Sequence[TextScreen]
    images: Sequence[ImageScreen]


@dataclass(frozen=True, slots=True)
class _Input:
    """What has one result: a text, or the parts of one input; None where there is no text."""

    text: str | None
    images: Sequence[JsonImage] = field(default=())


def screens_of(plans: TextPlans, policies: Collection[str]) -> ModerationScreens:
    """The screens of these policies."""
    named = {screen.name for policy in policies for screen in plans[policy].all_screens}
    return ModerationScreens(
        [screen for screen in plans.screens if screen.name in named],
        [screen for screen in plans.image_screens if screen.name in named],
    )


def screens_for(config: Config, plans: TextPlans, key: Principal | None) -> ModerationScreens:
    """The screens of the policies that a request with `key` may ask for; all on an open server.

    Raises PolicyForbidden where there is none.
    """
    if key is None:
        return ModerationScreens(plans.screens, plans.image_screens)
    models = [None, *config.default_policies]
    screens = screens_of(
        plans, {name for model in models for name in allowed_policies(config, key, model)}
    )
    if not screens.texts and not screens.images:
        raise PolicyForbidden(
            "No policy of this API key screens text: have the operator add one to its 'policies'."
        )
    return screens


async def moderate(
    body: dict[str, Any], screens: ModerationScreens, screener: Screener, caller: Caller
) -> dict[str, Any]:
    """The response to a request: a result per text of `input`, or one of all its parts; the
    categories are the screens.

    Raises MissingParameter, InvalidParameter, UnscreenedContent, TooManyImages, UnreadableImage and
    what `Screener.read` and `ImageScreener.read` do.
    """
    inputs = _inputs(body)
    texts = [given.text for given in inputs if given.text is not None]
    of_texts = iter(await screener.read(texts, screens.texts, caller=caller))
    results = []
    for given in inputs:
        found = {} if given.text is None else {r.screen.name: r for r in next(of_texts)}
        found |= await _of_images(given.images, screens.images, screener, caller)
        results.append(_result(screens, found, given))
    return {"id": f"modr-{uuid.uuid4().hex}", "model": MODEL, "results": results}


async def _of_images(
    images: Sequence[JsonImage], screens: Sequence[ImageScreen], screener: Screener, caller: Caller
) -> dict[str, ScreenedText]:
    """The highest result of each screen on some images."""
    if not images:
        return {}
    if screener.images is None or not screens:
        raise UnscreenedContent(
            "Only parts of type 'text' can be moderated here: no screen of images is configured.",
            param="input",
        )
    if len(images) > MAX_IMAGES:
        raise TooManyImages(f"There are {len(images)} images; {MAX_IMAGES} are the most at once.")
    encoders = frozenset(screen.encoder for screen in screens)
    wanted = [WantedImage(image, encoders, ocr=False) for image in images]
    readings = await screener.images.read(wanted, caller)
    for image, reading in zip(images, readings, strict=True):
        if reading.fault is not None:
            raise UnreadableImage(reading.fault, param=image.path)
    return {
        screen.name: ScreenedText(
            screen, max(float(r.scores[screen.encoder][screen.head or 0]) for r in readings)
        )
        for screen in screens
    }


def _result(
    screens: ModerationScreens, found: Mapping[str, ScreenedText], given: _Input
) -> dict[str, Any]:
    """A result; a screen that had nothing to read is not flagged, applied to no type of input."""
    all_screens = (*screens.texts, *screens.images)
    kinds = dict.fromkeys((screen.name for screen in screens.texts), "text")
    kinds |= dict.fromkeys((screen.name for screen in screens.images), "image")
    fired = {s.name: s.name in found and found[s.name].fired for s in all_screens}
    return {
        "flagged": any(fired.values()),
        "categories": fired,
        "category_scores": {
            s.name: round(found[s.name].score, 6) if s.name in found else 0.0 for s in all_screens
        },
        "category_applied_input_types": {
            name: [kind] if name in found else [] for name, kind in kinds.items()
        },
    }


def _inputs(body: dict[str, Any]) -> list[_Input]:
    value = body.get("input")
    if value is None:
        raise MissingParameter("Missing required parameter: 'input'.", param="input")
    if isinstance(value, str):
        return [_Input(value)]
    if isinstance(value, list) and 0 < len(value) <= MAX_TEXTS:
        if all(isinstance(item, str) for item in value):
            return [_Input(text) for text in value]
        if all(isinstance(item, dict) for item in value):
            return [_of_parts(value)]
    raise InvalidParameter(
        f"'input' is a text, or a list of at most {MAX_TEXTS} texts or parts.", param="input"
    )


def _of_parts(parts: Sequence[dict[str, Any]]) -> _Input:
    """The parts of one input, as OpenAI takes them."""
    texts, images = [], []
    for index, part in enumerate(parts):
        image = part.get("image_url")
        address = image.get("url") if isinstance(image, dict) else None
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(str(part["text"]))
        elif part.get("type") == "image_url" and isinstance(address, str):
            images.append(JsonImage(address, "user", f"input[{index}].image_url.url"))
        else:
            raise UnscreenedContent(
                "Only parts of type 'text', with a text, and 'image_url', with a url, can be "
                "moderated here.",
                param=f"input[{index}]",
            )
    return _Input("\n".join(texts) if texts else None, images)
