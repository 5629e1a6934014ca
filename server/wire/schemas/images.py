"""The request bodies of `/v1/images/...`: each parameter is honoured or refused by name.

Added to OpenAI's parameters are `seed`, `num_inference_steps`, `guidance_scale`, `negative_prompt`
and `embeddings`, and for edits `strength` and `inversion`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from guard.config.policy_schema import MAX_PROMPT_CHARS
from server.errors import InvalidParameter, UnsupportedParameter
from server.wire.embeddings import Numbers, read_numbers
from server.wire.image_files import FORMATS, ImageFormat
from server.wire.schemas.base import DebugGuardOptions, OpenAIRequest

SEED_LIMIT = 2**63
_SIZE = re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")


_DATA_URL = re.compile(r"data:image/(?:png|jpe?g|webp);base64,", re.IGNORECASE)

STRENGTH = 0.8
"""The default of edits: that of diffusers' `StableDiffusionImg2ImgPipeline`."""


# what validators of values say, said once more for the document
_SIZES = {"pattern": f"^(auto|{_SIZE.pattern})$"}
_PROMPT = {"pattern": r"\S", "maxLength": MAX_PROMPT_CHARS}


def _size(text: str) -> str:
    if text != "auto" and not _SIZE.fullmatch(text):
        raise ValueError('give "auto" or a width and a height in pixels, such as "64x64"')
    return text


class ImageRequest(OpenAIRequest):
    no_ops: ClassVar[dict[str, tuple[Any, ...]]] = {
        "background": ("auto", "opaque"),
        "complexity": (),
        "frame_count": (),
        "frame_duration_ms": (),
        "moderation": ("auto",),
        "partial_images": (0,),
        "quality": ("auto",),
        "stream": (False,),
        "style": (),
        "svg": (),
    }

    guard: DebugGuardOptions | None = None
    prompt: Annotated[str, Field(json_schema_extra=_PROMPT)]
    n: int = Field(1, ge=1)
    size: Annotated[str, AfterValidator(_size), Field(json_schema_extra=_SIZES)] = "auto"
    response_format: Annotated[
        Literal["b64_json", "url"], WithJsonSchema({"const": "b64_json"})
    ] = "b64_json"
    output_format: Annotated[str, Field(json_schema_extra={"enum": [*FORMATS]})] = "png"
    output_compression: int | None = Field(None, ge=0, le=100)
    safety_identifier: str | None = None
    seed: int | None = Field(None, ge=0, lt=SEED_LIMIT)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    negative_prompt: Annotated[str, Field(json_schema_extra={"maxLength": MAX_PROMPT_CHARS})] = ""
    embeddings: Annotated[
        Mapping[str, Numbers], PlainValidator(read_numbers, json_schema_input_type=dict[str, str])
    ] = Field({}, repr=False)

    @property
    def file_format(self) -> ImageFormat:
        """The file format of the images in the response."""
        return FORMATS[self.output_format]

    @model_validator(mode="after")
    def _prompts_have_a_valid_length(self) -> Self:
        if not self.prompt.strip():
            raise InvalidParameter("The prompt is empty.", param="prompt")
        for name in ("prompt", "negative_prompt"):
            size = len(getattr(self, name))
            if size > MAX_PROMPT_CHARS:
                raise InvalidParameter(
                    f"'{name}' is {size} characters long; the most is {MAX_PROMPT_CHARS}.",
                    param=name,
                )
        return self

    @model_validator(mode="after")
    def _images_can_be_sent(self) -> Self:
        if self.response_format == "url":
            raise UnsupportedParameter(
                "This server stores no images and has no URLs for them; set 'response_format' to "
                '"b64_json", or leave it out.',
                param="response_format",
            )
        if self.output_format not in FORMATS:
            raise UnsupportedParameter(
                f"'output_format' {self.output_format[:20]!r} is not supported; use one of "
                f"{', '.join(FORMATS)}.",
                param="output_format",
            )
        if self.output_compression is not None and not self.file_format.lossy:
            raise InvalidParameter(
                f"'output_compression' does not go with the lossless 'output_format' "
                f'"{self.output_format}"; leave it out.',
                param="output_compression",
            )
        return self


def _file(value: Any) -> Any:
    """The bytes of an image file, from a form's file or from a data URL in JSON."""
    if not isinstance(value, str):
        return value
    if (start := _DATA_URL.match(value)) is None:
        raise InvalidParameter(
            "'image' must be a file of a form, or a data URL with base64 "
            '("data:image/png;base64,..."); the server fetches no URLs.',
            param="image",
        )
    try:
        return base64.b64decode(value[start.end() :], validate=True)
    except ValueError:
        raise InvalidParameter(
            "The data URL in 'image' is not valid base64.", param="image"
        ) from None


class EditRequest(ImageRequest):
    no_ops: ClassVar[dict[str, tuple[Any, ...]]] = ImageRequest.no_ops | {
        "images": (),
        "input_fidelity": ("low",),
        "markup": (),
        "mask": (),
    }

    image: Annotated[
        bytes,
        BeforeValidator(_file, json_schema_input_type=str),
        Field(description="A file of a form, or in JSON a data URL with base64."),
    ]
    strength: float | None = Field(None, gt=0, le=1)
    inversion: bool = False

    @property
    def share(self) -> float | None:
        """The strength of the edit, None for an inversion: see `SourceImage.strength`."""
        if self.inversion:
            return None
        return STRENGTH if self.strength is None else self.strength

    @model_validator(mode="after")
    def _strength_or_inversion(self) -> Self:
        if self.inversion and self.strength is not None:
            raise InvalidParameter(
                "'strength' has no effect with 'inversion'; give one of them.", param="strength"
            )
        return self
