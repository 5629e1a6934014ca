"""Every page of the console, narrow and wide, light and dark: nothing is cut off, and axe finds no
fault (labels, contrast, roles, order of headings)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.server.console.browser import open_page, sign_in, tab
from tests.server.console.stand import ERASED, SECRET, ConsoleServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NO_AXE = "axe is not installed (pip install 'inference-guard[dev]')"
PAGES = ("Traffic", "Playground", "Thresholds", "Policies", "Erasures", "Keys")


pytestmark = pytest.mark.slow  # a browser on a busy machine takes its time


def faults(page: Page, *rules: str) -> list[str]:
    """What axe finds, by these rules alone where any are named, and whether the page is wider than
    its window."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=NO_AXE)
    options = {"resultTypes": ["violations"]} | ({"runOnly": [*rules]} if rules else {})
    found: Any = axe.Axe().run(page, options=options).response["violations"]
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found] + ["wide"] * wide


@pytest.mark.parametrize(
    ("width", "scheme", "rules"), [(1280, "light", ()), (390, "dark", ("color-contrast",))]
)
def test_no_page_has_a_fault(
    browser: Browser, server: ConsoleServer, width: int, scheme: str, rules: tuple[str, ...]
) -> None:
    assert server.tenants is not None
    with tab(browser, server.url, width=width, scheme=scheme) as page:
        assert faults(page, *rules) == [], "before anybody has signed in"
        sign_in(page, SECRET)
        for name in PAGES:
            open_page(page, name)
            page.wait_for_load_state("load")
            if name == "Traffic":
                page.locator(".traffic-table button").first.click()
            if name == "Playground":
                page.get_by_label("API key for models").fill(server.tenants.tenant)
                page.keyboard.press("Enter")
                page.get_by_label("Policy").select_option("steer-always")
                page.get_by_label("Prompt").fill("tell me a tale")
                page.get_by_label("Most tokens").fill("6")
                page.keyboard.press("Enter")
                page.get_by_text("What the guard has read").wait_for()
            if name == "Erasures":
                page.get_by_label("Forget", exact=True).fill(f"Tale {scheme}")
                page.get_by_label(ERASED).check()
                page.get_by_role("button", name="Forget it").click()
                card = page.get_by_role("article", name=f"Tale {scheme}")
                card.locator(".chip", has_text="shadow").wait_for()
                card.get_by_role("button", name="Certificate").click()
                page.get_by_role("dialog").wait_for()
                assert faults(page, *rules) == [], "the certificate"
                page.keyboard.press("Escape")
            if name == "Keys":
                page.get_by_role("button", name="New key").click()
                page.get_by_role("dialog").wait_for()
                assert faults(page, *rules) == [], "the form of a key"
                page.keyboard.press("Escape")
            assert faults(page, *rules) == [], name


def test_the_first_tab_leads_to_the_content(browser: Browser, server: ConsoleServer) -> None:
    with tab(browser, server.url) as page:
        sign_in(page, SECRET)
        page.reload()
        page.get_by_role("heading", name="Traffic", level=1).wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Pause"
        live = page.locator("[aria-live=polite]")
        assert live.count() == 1 and live.get_attribute("role") == "status"
