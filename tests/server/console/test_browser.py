"""The console as people use it: by clicks and by keyboard, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.server.console.browser import open_page, sign_in, tab
from tests.server.console.stand import ERASED, SECRET, ConsoleServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


pytestmark = pytest.mark.slow  # a browser on a busy machine takes its time


@pytest.fixture
def page(browser: Browser, server: ConsoleServer) -> Iterator[Page]:
    with tab(browser, server.url) as page:
        yield page


def test_a_wrong_key_is_refused_in_words_and_a_right_one_stays_in_the_tab(
    page: Page, server: ConsoleServer
) -> None:
    page.get_by_label("Key").fill("nobody's")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("Unknown API key.").wait_for()
    sign_in(page, SECRET)
    assert page.get_by_role("heading", level=1).inner_text() == "Traffic"
    for name in ("Playground", "Thresholds", "Policies", "Erasures", "Keys"):
        open_page(page, name)
        assert SECRET not in page.url and page.url.startswith(f"{server.url}/console#/")
    page.reload()
    page.get_by_role("heading", name="Keys", level=1).wait_for()
    assert page.evaluate("localStorage.length") == 0 and page.context.cookies() == []
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    assert page.evaluate("sessionStorage.length") == 0


def test_requests_show_as_they_end_and_can_be_filtered_and_opened(
    page: Page, server: ConsoleServer
) -> None:
    sign_in(page, SECRET)
    rows = page.locator(".traffic-table tbody tr")
    rows.nth(3).wait_for()
    before = rows.count()
    page.get_by_role("button", name="Pause").click()
    server.chat("observe-never")
    page.get_by_text("paused, 1 new request").wait_for()
    assert rows.count() == before
    page.get_by_role("button", name="Resume").click()
    page.wait_for_function(
        f"document.querySelectorAll('.traffic-table tbody tr').length > {before}"
    )
    page.get_by_label("Outcome").select_option("steered")
    assert set(rows.locator("td:nth-child(2)").all_inner_texts()) == {"steered"}
    opener = rows.first.get_by_role("button")
    opener.press("Enter")
    detail = page.locator("tr.detail")
    detail.wait_for()
    assert "topic/test" in detail.inner_text() and "did: steer" in detail.inner_text()
    assert opener.get_attribute("aria-expanded") == "true"
    page.get_by_label("Request id").fill("no such id")
    page.get_by_text("No request matches these filters.").wait_for()


def test_a_prompt_is_asked_twice_by_keyboard_alone(page: Page, server: ConsoleServer) -> None:
    assert server.tenants is not None
    sign_in(page, SECRET)
    open_page(page, "Playground")
    page.get_by_label("API key for models").fill(server.tenants.tenant)
    page.keyboard.press("Enter")
    page.get_by_label("Policy").select_option("steer-always")
    page.get_by_label("Most tokens").fill("12")
    page.get_by_label("Prompt").focus()
    page.keyboard.type("tell me a tale")
    page.keyboard.press("Control+Enter")
    page.get_by_text("What the guard has read").wait_for()
    bare, guarded = (page.get_by_role("article", name=name) for name in ("Bare", "Guarded"))
    assert bare.locator(".chip").inner_text() == "pass"
    assert guarded.locator(".chip").inner_text() == "steered"
    texts = [each.locator(".answer").inner_text() for each in (bare, guarded)]
    assert all(texts) and texts[0] != texts[1]
    assert guarded.locator(".answer .token[class*=level-]").count() >= 11
    assert page.locator(".chart rect").count() > 20
    page.get_by_text("All scores as a table").press("Enter")
    assert page.locator(".table-short tbody tr").count() > 20
    page.get_by_label("Policy").select_option("closed")
    page.get_by_text("set debug = true in [policies.closed]").wait_for()
    page.get_by_label("Prompt").press("Control+Enter")
    page.get_by_role("article", name="Guarded").locator(".chip", has_text="pass").wait_for()
    texts = [each.locator(".answer").inner_text() for each in (bare, guarded)]
    assert texts[0] == texts[1], "a silent guard changes nothing"


def test_errors_of_the_api_are_said_in_words(page: Page, server: ConsoleServer) -> None:
    assert server.tenants is not None
    sign_in(page, server.tenants.tenant)
    page.get_by_role("heading", name="Playground", level=1).wait_for()
    page.get_by_label("Policy").select_option("block-always")
    page.get_by_label("Prompt").fill("tell me a tale")
    page.get_by_role("button", name="Run both").click()
    guarded = page.get_by_role("article", name="Guarded")
    guarded.locator(".chip", has_text="blocked").wait_for()
    assert "a guard of this policy blocks the prompt" in guarded.inner_text()


def test_the_slider_says_what_another_threshold_would_change(
    page: Page, server: ConsoleServer
) -> None:
    for _ in range(3):
        server.chat("observe-never")
    sign_in(page, SECRET)
    open_page(page, "Thresholds")
    page.get_by_role("combobox", name="Guard").select_option("never")
    effect = page.locator(".effect")
    total = re.search(r"of (\d+) requests", effect.inner_text())
    assert total is not None and "would fire on 0 of" in effect.inner_text()
    page.get_by_label("Exactly").fill("0.001")
    assert f"would fire on {total[1]} of {total[1]} requests" in effect.inner_text()
    assert "would fire" in page.locator("tbody tr").first.inner_text()
    slider = page.get_by_role("slider", name="Threshold")
    slider.press("End")
    assert "would fire on 0 of" in effect.inner_text()
    page.get_by_role("button", name="Back to now").click()
    page.get_by_text("No recorded request would be decided otherwise.").wait_for()


def test_something_is_forgotten_put_in_force_and_withdrawn(page: Page) -> None:
    sign_in(page, SECRET)
    open_page(page, "Erasures")
    page.get_by_text("Nothing has been erased yet").wait_for()
    page.get_by_label("Forget", exact=True).fill("Tale")
    page.get_by_label("Other names").fill("the story, a fable")
    page.get_by_role("button", name="Forget it").click()
    page.get_by_role("alert").get_by_text("Missing required parameter: 'policies'.").wait_for()
    page.get_by_label(ERASED).check()
    page.get_by_role("button", name="Forget it").click()
    card = page.get_by_role("article", name="Tale")
    card.locator(".chip", has_text="shadow").wait_for()
    assert "also the story, a fable" in card.inner_text()
    card.get_by_role("button", name="Put in force").click()
    card.locator(".chip", has_text="in force").wait_for()
    card.get_by_role("button", name="Certificate").click()
    certificate = page.get_by_role("dialog")
    certificate.get_by_text("SHA-256 of the artifact").wait_for()
    with page.expect_download() as saved:
        certificate.get_by_role("button", name="Save as JSON").click()
    assert saved.value.suggested_filename.startswith("er-")
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0
    card.get_by_role("button", name="Withdraw").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert card.locator(".chip", has_text="in force").count() == 1
    card.get_by_role("button", name="Withdraw").click()
    page.get_by_role("dialog").get_by_role("button", name="Withdraw").click()
    card.locator(".chip", has_text="withdrawn").wait_for()
    assert card.get_by_role("button").all_inner_texts() == ["Certificate"]


def test_a_key_is_made_told_once_and_revoked(page: Page, server: ConsoleServer) -> None:
    sign_in(page, SECRET)
    open_page(page, "Keys")
    page.get_by_role("button", name="New organisation").click()
    page.get_by_role("dialog").get_by_label("Name").fill("acme")
    page.get_by_role("button", name="Make it").click()
    page.get_by_role("alert").wait_for()
    page.get_by_role("dialog").get_by_label("Name").fill("library")
    page.get_by_role("dialog").get_by_label("Requests a minute").fill("600")
    page.get_by_role("button", name="Make it").click()
    page.get_by_role("button", name="New team").click()
    page.get_by_role("dialog").get_by_label("Organisation").select_option("library")
    page.get_by_role("dialog").get_by_label("Name").fill("desk")
    page.get_by_role("button", name="Make it").click()
    page.get_by_role("button", name="New key").click()
    page.get_by_role("dialog").get_by_label("Name").fill("counter")
    page.get_by_role("dialog").get_by_label("Team").select_option("library/desk")
    page.get_by_role("button", name="Make it").click()
    key = page.locator(".key-text").inner_text()
    assert server.get("/guard/v1/me", key).json()["name"] == "library/desk"
    page.get_by_role("button", name="I have it").click()
    assert key not in page.content()
    page.get_by_role("button", name="Revoke counter").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    row = page.get_by_role("row").filter(has_text="counter")
    row.get_by_text("revoked").wait_for()
    assert server.get("/guard/v1/me", key).status_code == 401


def test_a_policy_is_drafted_tried_in_shadow_put_in_force_and_rolled_back(
    page: Page, server: ConsoleServer
) -> None:
    assert server.chat("flag-never").json()["guard"]["outcome"] == "pass"
    sign_in(page, SECRET)
    open_page(page, "Policies")
    page.get_by_role("link", name="flag-never").click()
    page.get_by_role("heading", name="flag-never").wait_for()
    settings = page.get_by_label("Settings")
    settings.fill("{no json")
    page.get_by_role("button", name="What would differ?").click()
    page.get_by_role("alert").get_by_text("The settings are no JSON").wait_for()
    settings.fill('{"guards": ["ghost"]}')
    page.get_by_role("button", name="Put in force").click()
    page.get_by_role("alert").get_by_text("ghost").wait_for()
    settings.fill('{"guards": ["never"], "action": "flag", "thresholds": {"never": -1000.0}}')
    page.get_by_role("button", name="What would differ?").click()
    page.get_by_role("cell", name="thresholds.never").wait_for()
    page.get_by_role("button", name="Replay the last 1,000 requests").click()
    page.get_by_text("would be decided otherwise.").wait_for()
    page.get_by_label("Why").fill("to see what it would do")
    page.get_by_role("button", name="Try it in shadow").click()
    page.get_by_role("region", name="Shadow").get_by_text("observes").wait_for()
    assert server.chat("flag-never").json()["guard"]["outcome"] == "pass"
    page.get_by_role("button", name="Put it in force").click()
    page.get_by_text("version 2 in force").wait_for()
    assert server.chat("flag-never").json()["guard"]["outcome"] == "flagged"
    page.get_by_role("region", name="Versions").get_by_text("to see what it would do").wait_for()
    page.get_by_role("button", name="Roll back to 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    page.get_by_text("version 3 in force").wait_for()
    assert server.chat("flag-never").json()["guard"]["outcome"] == "pass"


def test_an_auditor_reads_and_changes_nothing(page: Page, server: ConsoleServer) -> None:
    assert server.tenants is not None
    sign_in(page, server.tenants.auditor)
    reading = {"Certificate", "What would differ?", "Replay the last 1,000 requests"}
    for name in ("Policies", "Erasures", "Keys"):
        open_page(page, name)
        page.wait_for_load_state("networkidle")
        buttons = page.locator("main").get_by_role("button").all_inner_texts()
        assert {each for each in buttons if each != "What it changed"} <= reading, name
