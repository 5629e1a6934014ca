"""Images in the playground, with the masks of a guard that writes to the latents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.server.console.browser import open_page, tab
from tests.server.endpoints.erasing_server import PROMPT, SEED, Site, erasing

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow  # a browser on a busy machine takes its time


@pytest.fixture(scope="module")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Asks for the browser first: without one, no server is started."""
    with erasing(tmp_path_factory.mktemp("erasing")) as site:
        yield site


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    with tab(browser, site.url) as page:
        open_page(page, "Playground")
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_label("Seed").fill(str(SEED))
        yield page


def run(page: Page, policy: str) -> None:
    page.get_by_label("Policy").select_option(policy)
    page.get_by_role("button", name="Run both").click()


def test_the_mask_lies_over_the_image_that_the_guard_wrote_on(page: Page) -> None:
    run(page, "shown")
    bare, guarded = (page.get_by_role("article", name=name) for name in ("Bare", "Guarded"))
    guarded.locator(".chip", has_text="perturbed").wait_for()
    bare.locator(".chip", has_text="pass").wait_for()
    assert bare.get_by_role("checkbox").count() == 0
    sources = [each.locator("img").get_attribute("src") for each in (bare, guarded)]
    assert sources[0] != sources[1]
    mask, image = guarded.locator(".mask"), guarded.locator("img")
    assert mask.count() == 1, "the silent guard wrote nothing"
    assert not mask.is_visible()
    guarded.get_by_label("Show where break wrote").check()
    mask.wait_for()
    assert mask.bounding_box() == image.bounding_box()
    shown = mask.evaluate("each => getComputedStyle(each).maskImage")
    assert shown.startswith('url("data:image/png;base64,')
    text = guarded.inner_text()
    assert "did: perturb, at step 3, on " in text and "score afterwards" in text
    guarded.get_by_label("Show where break wrote").uncheck()
    assert not mask.is_visible()


def test_a_guard_that_wrote_nothing_has_no_mask(page: Page) -> None:
    run(page, "observe")
    guarded = page.get_by_role("article", name="Guarded")
    guarded.get_by_text("No mask: the guards have acted on the prompt").wait_for()
    assert guarded.get_by_role("checkbox").count() == 0


def test_an_image_that_is_blocked_shows_why(page: Page) -> None:
    run(page, "stubborn")
    guarded = page.get_by_role("article", name="Guarded")
    guarded.locator(".chip", has_text="blocked").wait_for()
    assert "in the image" in guarded.inner_text() and guarded.locator("img").count() == 0
