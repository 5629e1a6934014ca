from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.invariants.text_server import CAPACITY, QUEUE, TextServer, serve_text
from tests.server.tiny_text_service import TinyTextModel


@pytest.fixture(scope="package")
def _shared(
    tiny_model: TinyTextModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TextServer]:
    folder = tmp_path_factory.mktemp("server")
    limits = {"max_batch": CAPACITY, "queue_limit": QUEUE, "max_body_bytes": 100_000}
    with tiny_model.serve(folder, **limits) as running, serve_text(running) as server:
        yield server


@pytest.fixture
def server(_shared: TextServer) -> Iterator[TextServer]:
    """One server for all tests that do not change it; it must still answer after each."""
    yield _shared
    assert _shared.chat().choices[0].finish_reason == "length"
    assert _shared.running.service.queued() == 0
    _shared.wait_until(lambda: _shared.running.engine.rows == 0)
