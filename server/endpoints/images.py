"""`/v1/images/generations` and `/v1/images/edits`: image rows in OpenAI's schema."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from guard.verdict import gravest
from server.auth import require_embeddings
from server.endpoints.gateway import Admission, Gateway
from server.errors import InvalidParameter, UnsupportedParameter
from server.observe.exchange import exchange_of
from server.openapi.operation import ASKING, JSON, Operation
from server.services.image_jobs import ImageJob
from server.services.interface import (
    GeneratedImage,
    ImageModelInfo,
    ImageRowRequest,
    ImageService,
    SourceImage,
)
from server.services.text_jobs import until_disconnect
from server.wire.embeddings import Vectors, read_vectors
from server.wire.forms import read_object_or_form
from server.wire.image_files import encode_image, encode_mask
from server.wire.replies import JSONReply
from server.wire.schemas.answers.images import Images
from server.wire.schemas.images import SEED_LIMIT, EditRequest, ImageRequest
from server.wire.uploads import decode_upload

_GENERATION = Operation(body=ImageRequest, answers={JSON: Images}, errors=ASKING, guarded=True)
_EDIT = replace(_GENERATION, body=EditRequest, media=("multipart/form-data", JSON))


def images_router(gateway: Gateway) -> APIRouter:
    """The routes that generate and edit images."""
    router = APIRouter()

    @router.post("/v1/images/generations", openapi_extra=_GENERATION.as_extra())
    async def create_image(request: Request) -> Response:
        """Generate images from a prompt."""
        admission = await gateway.admit(request, ImageRequest, gateway.image_service)
        requests = _requests(gateway, request, admission)
        return await _answer(gateway, request, admission, requests)

    @router.post("/v1/images/edits", openapi_extra=_EDIT.as_extra())
    async def edit_image(request: Request) -> Response:
        """Generate images from a prompt and an image, from a form or from JSON."""
        admission = await gateway.admit(
            request, EditRequest, gateway.editing_service, partial(read_object_or_form, EditRequest)
        )
        requests = _requests(gateway, request, admission)
        body, info = admission.body, admission.service.info
        async with gateway.decoding:
            pixels = await asyncio.to_thread(
                decode_upload, body.image, width=info.width, height=info.height
            )
        source = SourceImage(pixels, body.share)
        return await _answer(
            gateway, request, admission, [replace(row, source=source) for row in requests]
        )

    return router


async def _answer(
    gateway: Gateway,
    request: Request,
    admission: Admission[Any, ImageService],
    requests: Sequence[ImageRowRequest],
) -> Response:
    """Run the rows and return their images. Raises ClientGone where the client disconnects."""
    job = ImageJob(admission.service, requests, admission.deadline)

    async def run() -> dict[str, Any]:
        images = await job.images()
        files = await asyncio.to_thread(_files, admission.body, images)
        exchange_of(request).outcome = gravest(image.verdict.outcome for image in images)
        masks = await asyncio.to_thread(_masks, admission, images)
        verdicts = [exchange_of(request).guard(image.verdict) for image in images]
        return _reply(admission, requests, verdicts, files, masks)

    body = await until_disconnect(request.receive, run())
    gateway.metrics.count_images(admission.service.info.name, len(requests))
    return JSONReply(body)


def _requests(
    gateway: Gateway, request: Request, admission: Admission[Any, ImageService]
) -> list[ImageRowRequest]:
    """The `body.n` rows of a request, each with a seed of its own.

    Raises RequestError where the model or the server cannot run them.
    """
    body: ImageRequest = admission.body
    info, limits = admission.service.info, gateway.config.server
    if body.n > (most := min(limits.max_images, limits.queue_limit)):
        raise InvalidParameter(
            f"'n' is {body.n}; this server generates at most {most} images for one request.",
            param="n",
        )
    if body.size not in ("auto", info.size):
        raise InvalidParameter(
            f"The model {info.name!r} generates images of {info.size}, not of {body.size}.",
            param="size",
        )
    if not info.denoises:
        _require_no_denoising(body, info)
    steps = body.num_inference_steps or info.steps
    if steps > info.max_steps:
        raise InvalidParameter(
            f"'num_inference_steps' is {steps}; this server takes at most {info.max_steps}.",
            param="num_inference_steps",
        )
    guidance = info.guidance if body.guidance_scale is None else body.guidance_scale
    if body.negative_prompt and info.distilled:
        raise UnsupportedParameter(
            f"The model {info.name!r} has no use for a 'negative_prompt'; leave it out.",
            param="negative_prompt",
        )
    if body.negative_prompt and guidance <= 1:
        raise InvalidParameter(
            "A 'negative_prompt' takes a 'guidance_scale' of more than 1.", param="negative_prompt"
        )
    debug = body.guard is not None and body.guard.debug
    if debug:
        gateway.require_debug(request, admission)
    embeddings = _embeddings(gateway, admission)
    seed = secrets.randbits(32) if body.seed is None else body.seed
    return [
        ImageRowRequest(
            request_id=admission.request_id + (f"/{index}" if body.n > 1 else ""),
            prompt=body.prompt,
            policy=admission.policy,
            seed=(seed + index) % SEED_LIMIT,
            steps=steps,
            guidance=guidance,
            negative_prompt=body.negative_prompt,
            tenant=admission.tenant,
            record_id=admission.record_id,
            embeddings=embeddings,
            debug=debug,
            config=admission.config,
        )
        for index in range(body.n)
    ]


def _require_no_denoising(body: ImageRequest, info: ImageModelInfo) -> None:
    """Refuse settings of denoising for a model that writes its images token by token."""
    for name in ("num_inference_steps", "guidance_scale", "negative_prompt"):
        if getattr(body, name) not in (None, ""):
            raise UnsupportedParameter(
                f"The model {info.name!r} writes its images token by token, without {name!r}; "
                "leave it out.",
                param=name,
            )


def _embeddings(
    gateway: Gateway, admission: Admission[ImageRequest, ImageService]
) -> Mapping[str, Vectors]:
    """The embeddings of the request. Raises where its key or its model does not take them."""
    body = admission.body
    if not body.embeddings:
        return {}
    require_embeddings(gateway.config, admission.key)
    return read_vectors(
        body.embeddings,
        admission.service.info,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
    )


def _files(body: ImageRequest, images: Sequence[GeneratedImage]) -> list[bytes]:
    form, quality = body.file_format, body.output_compression
    return [encode_image(image.pixels, form, quality) for image in images]


def _masks(
    admission: Admission[ImageRequest, ImageService], images: Sequence[GeneratedImage]
) -> list[dict[str, str]]:
    """For each image the masks of its guards, by name: PNG files in base64."""
    info = admission.service.info
    return [
        {
            name: base64.b64encode(encode_mask(mask, width=info.width, height=info.height)).decode()
            for name, mask in image.masks.items()
        }
        for image in images
    ]


def _reply(
    admission: Admission[Any, ImageService],
    requests: Sequence[ImageRowRequest],
    verdicts: Sequence[dict[str, Any]],
    files: Sequence[bytes],
    masks: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    info: ImageModelInfo = admission.service.info
    return {
        "created": int(time.time()),
        "background": "opaque",
        "data": [
            {
                "b64_json": base64.b64encode(file).decode(),
                "seed": request.seed,
                **verdict,
                **({"masks": row_masks} if request.debug else {}),
            }
            for request, verdict, file, row_masks in zip(
                requests, verdicts, files, masks, strict=True
            )
        ],
        "output_format": admission.body.output_format,
        "size": info.size,
        **verdicts[0],
    }
