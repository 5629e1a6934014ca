"""The console of the proxy, by clicks: it has no models to ask, and all else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.server.console.browser import open_page, sign_in, tab
from tests.server.policies.stand import SECRET, Administrator, administered
from tests.server.tenants.stand import Tenants, bearer, seeded

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

POLICIES = '[policies.strict]\nguards = ["words"]\naction = "block"\nkeep_text = true\n'
TENANTS = '[tenants]\ndatabase = "tenants.sqlite"\nrefresh_s = 0.1\n'
pytestmark = pytest.mark.slow  # a browser on a busy machine takes its time


@pytest.fixture(scope="module")
def proxy(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Administrator, Tenants]]:
    """Asks for the browser first: without one, no proxy is started."""
    folder = tmp_path_factory.mktemp("proxy")
    tenants = seeded(folder / "tenants.sqlite")
    with administered(folder, POLICIES, TENANTS) as admin:
        yield admin, tenants


@pytest.fixture
def page(browser: Browser, proxy: tuple[Administrator, Tenants]) -> Iterator[Page]:
    with tab(browser, proxy[0].proxy.url) as page:
        yield page


def said(proxy: tuple[Administrator, Tenants], text: str) -> str:
    """The outcome of a chat about `text`, asked with a tenant's key."""
    admin, tenants = proxy
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    url = f"{admin.proxy.url}/v1/chat/completions"
    answer = httpx.post(url, json=body, headers=bearer(tenants.tenant), timeout=20)
    return answer.headers["x-guard-verdict"]


def pages(page: Page) -> list[str]:
    return page.get_by_role("navigation").get_by_role("link").all_inner_texts()


def test_it_offers_what_a_proxy_has(page: Page, proxy: tuple[Administrator, Tenants]) -> None:
    sign_in(page, SECRET)
    page.get_by_text("No requests yet").wait_for()
    assert pages(page) == ["Traffic", "Thresholds", "Policies", "Keys"]
    assert page.get_by_role("link", name="Open the playground").count() == 0
    open_page(page, "Thresholds")
    page.get_by_text("No scores yet").wait_for()
    assert page.get_by_role("link", name="Open the playground").count() == 0
    page.get_by_role("button", name="Sign out").click()
    sign_in(page, proxy[1].tenant)
    page.get_by_role("heading", name="Policies", level=1).wait_for()
    assert pages(page) == ["Policies"]
    page.get_by_role("rowheader", name="strict").or_(page.get_by_text("strict")).first.wait_for()


def test_a_request_is_followed_and_its_kept_text_read(
    page: Page, proxy: tuple[Administrator, Tenants]
) -> None:
    sign_in(page, proxy[1].auditor)
    page.get_by_role("heading", name="Traffic", level=1).wait_for()
    assert said(proxy, "something <b>forbidden</b>") == "blocked"
    page.locator(".traffic-table tbody tr").first.get_by_role("button").click()
    text = page.get_by_role("region", name="Text of the request")
    text.get_by_role("button", name="Show the text").press("Enter")
    text.get_by_text("something <b>forbidden</b>").wait_for()
    assert "user" in text.inner_text() and text.get_by_role("button").count() == 0
    assert said(proxy, "hello") == "pass"
    page.locator(".traffic-table tbody tr:not(.detail)").nth(1).wait_for()
    text.get_by_text("something <b>forbidden</b>").wait_for()
    open_page(page, "Thresholds")
    page.get_by_text("Lists find something or not").wait_for()


def test_a_text_that_is_kept_no_more_is_said(
    page: Page, proxy: tuple[Administrator, Tenants]
) -> None:
    said(proxy, "forbidden too")
    sign_in(page, SECRET)
    page.locator(".traffic-table tbody tr").first.get_by_role("button").click()
    settings = {"guards": ["words"], "action": "block"}
    assert proxy[0].put("strict", settings).status_code == 200
    page.get_by_role("button", name="Show the text").click()
    page.get_by_role("alert").get_by_text("not kept, or not any more").wait_for()
    assert proxy[0].put("strict", settings | {"keep_text": True}).status_code == 200


def test_a_policy_is_changed_replayed_and_rolled_back(
    page: Page, proxy: tuple[Administrator, Tenants]
) -> None:
    for text in ("Tom", "hello"):
        said(proxy, text)
    sign_in(page, SECRET)
    open_page(page, "Policies")
    page.get_by_role("link", name="strict").click()
    page.get_by_role("heading", name="strict").wait_for()
    before = page.get_by_text("in force").first.inner_text()
    page.get_by_label("Settings").fill(
        '{"guards": ["words", "names"], "action": "block", "keep_text": true}'
    )
    page.get_by_role("button", name="Replay the last 1,000 requests").click()
    page.get_by_text("would be decided otherwise.").wait_for()
    page.get_by_role("button", name="Put in force").click()
    page.wait_for_function("was => !document.body.innerText.includes(was)", arg=before)
    assert said(proxy, "Tom") == "blocked"
    number = int(before.split()[1])
    page.get_by_role("button", name=f"Roll back to {number}", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    page.get_by_text(f"version {number + 2} in force").wait_for()
    assert said(proxy, "Tom") == "pass"


def test_a_key_is_made_and_revoked(page: Page, proxy: tuple[Administrator, Tenants]) -> None:
    sign_in(page, SECRET)
    open_page(page, "Keys")
    page.get_by_role("button", name="New key").click()
    page.get_by_role("dialog").get_by_label("Name").fill("counter")
    page.get_by_role("dialog").get_by_label("Team").select_option("acme/research")
    page.get_by_role("button", name="Make it").click()
    key = page.locator(".key-text").inner_text()
    page.get_by_role("button", name="I have it").click()
    url = f"{proxy[0].proxy.url}/guard/v1/me"
    assert httpx.get(url, headers=bearer(key), timeout=20).json()["name"] == "acme/research"
    page.get_by_role("button", name="Revoke counter").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    page.get_by_role("row").filter(has_text="counter").get_by_text("revoked").wait_for()
    assert httpx.get(url, headers=bearer(key), timeout=20).status_code == 401
