from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.endpoints.image_server import ImageServer, serve_toy
from tests.server.toy_image_service import serve_images


@pytest.fixture(scope="package")
def _shared_images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageServer]:
    folder = tmp_path_factory.mktemp("images")
    with (
        serve_images(folder, max_batch=4, queue_limit=16, max_images=6) as running,
        serve_toy(running) as server,
    ):
        yield server


@pytest.fixture
def server(_shared_images: ImageServer) -> Iterator[ImageServer]:
    """One server for all tests that do not change it; it must still answer after each."""
    yield _shared_images
    assert _shared_images.post().status_code == 200
    assert _shared_images.running.service.queued() == 0
    _shared_images.wait_until(lambda: _shared_images.running.engine.rows == 0)
