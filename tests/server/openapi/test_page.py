"""The page of the document needs no script and no other file."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import httpx

from server.openapi.page import page_of
from tests.server.live_server import LiveServer


class Reader(HTMLParser):
    """The tags of a page, the targets of its links, its ids and its style sheet."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.style = ""
        self._in_style = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._in_style = tag == "style"
        for name, value in attrs:
            assert name not in {"style", "src"} and not name.startswith("on")
            if name == "href":
                self.links.append(value or "")
            elif name == "id":
                self.ids.add(value or "")

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.style += data

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False


def test_the_page_loads_nothing_and_its_policy_says_so(live: LiveServer) -> None:
    response = httpx.get(f"{live.url}/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    page = Reader(response.text)
    assert not page.tags & {"script", "link", "img", "iframe", "form", "object"}
    policy = response.headers["content-security-policy"]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
    assert "unsafe" not in policy


def test_every_link_leads_somewhere(live: LiveServer) -> None:
    page = Reader(httpx.get(f"{live.url}/docs").text)
    document = httpx.get(f"{live.url}/openapi.json").json()
    assert page.links[0] == "openapi.json"
    assert {link.removeprefix("#") for link in page.links[1:]} <= page.ids
    routes = {
        op["operationId"] for members in document["paths"].values() for op in members.values()
    }
    assert routes | document["components"]["schemas"].keys() == page.ids


def test_what_the_document_says_is_not_taken_for_tags() -> None:
    operation = {
        "operationId": "x",
        "summary": "<b>`a<b`</b>",
        "responses": {"200": {"description": "<script>"}},
    }
    page = page_of(
        {
            "info": {"title": "<i>", "version": "1"},
            "paths": {"/<x>": {"get": operation}},
            "components": {"schemas": {"<S>": {"enum": ["<u>"], "description": "<s>"}}},
        }
    )
    assert not re.search(r"<(script|i|u|s|S|x)>", page)
    assert "&lt;b&gt;<code>a&lt;b</code>&lt;/b&gt;" in page
