from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.live_server import Launch, LiveServer, live_server
from tests.server.tiny_text_service import TinyTextModel


@pytest.fixture
def launch() -> Launch:
    return live_server


@pytest.fixture(scope="session")
def _shared() -> Iterator[LiveServer]:
    with live_server() as live:
        yield live


@pytest.fixture
def live(_shared: LiveServer) -> LiveServer:
    """One open server, shared by all tests that do not change it."""
    _shared.service.refusal = None
    _shared.service.submitted.clear()
    _shared.service.cancelled.clear()
    _shared.verdicts.clear()
    return _shared


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyTextModel:
    """A tiny model on disk, with guards for it."""
    return TinyTextModel(tmp_path_factory.mktemp("tiny_model"))
