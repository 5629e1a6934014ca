from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.server.console.browser import chromium
from tests.server.console.stand import ConsoleServer, console_server
from tests.server.tiny_text_service import TinyTextModel

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(
    browser: Browser, tiny_model: TinyTextModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ConsoleServer]:
    """Asks for the browser first: without one, no server is started."""
    with console_server(tiny_model, tmp_path_factory.mktemp("console"), keyed=True) as server:
        for policy in ("steer-always", "steer-never", "observe-always", "none"):
            assert server.chat(policy).status_code == 200
        yield server
