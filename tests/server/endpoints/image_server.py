"""A server over HTTP with an image model `toy` and a language model `fake`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image

from guard.tenants.keys import KeyRing
from server.app import create_app
from tests.guard.toy_images import CONCEPT, PAINTED, STUBBORN
from tests.server.fake_service import FakeService
from tests.server.live_server import HttpServer, serve_app
from tests.server.toy_image_service import RunningImages

IMAGES = "/v1/images/generations"
KNIFE, STUCK, SHOWN = f"a {CONCEPT}", f"a {STUBBORN}", f"a {PAINTED}"


@dataclass
class ImageServer(HttpServer):
    running: RunningImages

    def post(self, prompt: Any = "a cat", policy: str = "none", **options: Any) -> httpx.Response:
        body = {"model": "toy", "prompt": prompt, "guard": {"policy": policy}} | options
        return httpx.post(f"{self.url}{IMAGES}", json=body, timeout=20)

    def pixels(self, prompt: str = "a cat", policy: str = "none", **options: Any) -> Any:
        (data,) = self.post(prompt, policy, **{"seed": 1} | options).json()["data"]
        return pixels_of(data["b64_json"])


def pixels_of(b64: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


@contextmanager
def serve_toy(running: RunningImages) -> Iterator[ImageServer]:
    services: dict[str, Any] = {"toy": running.service, "fake": FakeService()}
    keys = KeyRing(running.config.keys) if running.config.keys else None
    app = create_app(running.config, services, keys=keys, metrics=running.metrics)
    with serve_app(app, services) as (url, _):
        try:
            yield ImageServer(url, running)
        finally:
            running.engine.go.set()


def check_error(
    response: httpx.Response, status: int, code: str | None, param: str | None, words: str
) -> None:
    """The response is an error in OpenAI's envelope, with `words` in its message."""
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert words in error["message"]
