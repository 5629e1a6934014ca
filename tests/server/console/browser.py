"""A headless Chromium that is installed, driven by Playwright; no browser is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NO_BROWSER = "no Chromium is installed (Debian: apt-get install chromium)"
NO_DRIVER = "Playwright is not installed (pip install 'inference-guard[dev]')"
PATIENCE_MS = 60_000
_QUIET = (
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser. Skips where there is none, or nothing to drive it with."""
    driver = pytest.importorskip("playwright.sync_api", reason=NO_DRIVER)
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip(NO_BROWSER)
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*_QUIET])
        yield browser
        browser.close()


@contextmanager
def tab(
    browser: Browser, url: str, *, width: int = 1280, height: int = 900, scheme: Any = "light"
) -> Iterator[Page]:
    """A page of the console. Fails where the browser reports an error, such as one against the
    page's Content-Security-Policy, or a request that leaves the server."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if _is_fault(said) else None)
    page.on("request", lambda sent: faults.append(sent.url) if _leaves(sent.url, url) else None)
    page.goto(f"{url}/console")
    try:
        yield page
        assert faults == []
    finally:
        context.close()


def _is_fault(said: Any) -> bool:
    # a status of the API is no fault of the page: it tells the user of it in words
    return said.type in {"error", "warning"} and "Failed to load resource" not in said.text


def _leaves(address: str, url: str) -> bool:
    return not address.startswith((url, "data:", "blob:"))


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("Key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Sign out").wait_for()


def open_page(page: Page, name: str) -> None:
    page.get_by_role("navigation").get_by_role("link", name=name).click()
    page.get_by_role("heading", name=name, level=1).wait_for()
