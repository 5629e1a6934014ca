from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.services import image_driver, text_driver
from tests.server.tiny_text_service import RunningText, TinyTextModel
from tests.server.toy_image_service import RunningImages, serve_images


@pytest.fixture
def running(tiny_model: TinyTextModel, tmp_path: Path) -> Iterator[RunningText]:
    limits = {"max_batch": text_driver.CAPACITY, "queue_limit": text_driver.QUEUE}
    with tiny_model.serve(tmp_path, **limits) as running:
        yield running


@pytest.fixture(scope="session")
def shared(
    tiny_model: TinyTextModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningText]:
    """A text service, shared by all tests that do not change it."""
    with tiny_model.serve(tmp_path_factory.mktemp("shared"), max_batch=8) as running:
        yield running


@pytest.fixture
def images(tmp_path: Path) -> Iterator[RunningImages]:
    limits = {"max_batch": image_driver.CAPACITY, "queue_limit": image_driver.QUEUE}
    with serve_images(tmp_path, **limits) as running:
        yield running
