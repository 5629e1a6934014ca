"""`/v1/images/generations` and `/v1/images/edits`."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.wire.schemas.answers.verdicts import Guard


class GeneratedImageFile(TypedDict):
    """`masks` come where `guard.debug` asks for them: for each guard the pixels that it has
    changed, as a PNG file in base64."""

    b64_json: str
    seed: int
    guard: NotRequired[Guard]
    masks: NotRequired[dict[str, str]]


class Images(TypedDict):
    """Images, with the verdict on the first one as `guard`."""

    created: int
    background: Literal["opaque"]
    data: list[GeneratedImageFile]
    output_format: str
    size: str
    guard: NotRequired[Guard]
