"""Requests to a running image service, and their images."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from guard.errors import GuardError
from server.services.images import ImageRow
from server.services.interface import GeneratedImage, ImageRowRequest
from tests.server.running_service import run
from tests.server.toy_image_service import RunningImages

CAPACITY, QUEUE = 4, 3


def request(prompt: str = "a cat", policy: str = "none", **options: Any) -> ImageRowRequest:
    settings = {"seed": 7, "steps": 4, "guidance": 3.0, "tenant": "acme"} | options
    return ImageRowRequest(f"{policy}:{prompt[:20]}", prompt, policy, **settings)


async def outcome(row: ImageRow) -> GeneratedImage | GuardError:
    try:
        return await row.image()
    except GuardError as error:
        return error


async def batch(running: RunningImages, requests: list[ImageRowRequest]) -> list[Any]:
    return await asyncio.gather(*map(outcome, running.service.submit(requests)))


def outcomes(running: RunningImages, *requests: ImageRowRequest) -> list[Any]:
    """The images or errors of requests that run as one batch, on a new event loop."""
    result: list[Any] = run(lambda: batch(running, list(requests)))
    return result


def same(one: GeneratedImage, other: GeneratedImage) -> bool:
    return bool(np.array_equal(one.pixels, other.pixels))
