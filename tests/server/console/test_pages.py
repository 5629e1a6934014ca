"""The files of the console: what browsers may do with them, and what they must not hold."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from tests.server.live_server import LiveServer

STATIC = Path(str(files("server.console"))) / "static"
FILES = sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*.*"))


def read(live: LiveServer, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{live.url}{path}", headers=headers, timeout=30)


def test_the_page_is_the_same_with_and_without_a_slash(live: LiveServer) -> None:
    page = read(live, "/console")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert read(live, "/console/").content == page.content
    assert httpx.head(f"{live.url}/console", timeout=30).status_code == 200
    assert httpx.post(f"{live.url}/console", timeout=30).status_code == 405


def test_every_file_may_load_from_this_server_alone(live: LiveServer) -> None:
    kinds = {
        "js": "text/javascript",
        "css": "text/css",
        "svg": "image/svg+xml",
        "html": "text/html",
    }
    assert len(FILES) > 10
    for name in FILES:
        answer = read(live, f"/console/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["content-type"].startswith(kinds[name.rpartition(".")[2]]), name
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy and "http" not in policy and "*" not in policy
        assert "trusted-types 'none'" in policy, "no code makes itself an exception"
        assert answer.headers["x-content-type-options"] == "nosniff"
        for whose in ("opener", "resource"):
            assert answer.headers[f"cross-origin-{whose}-policy"] == "same-origin"
        tag = answer.headers["etag"]
        assert read(live, f"/console/{name}", **{"if-none-match": tag}).status_code == 304


@pytest.mark.parametrize(
    "path",
    [
        "/console/ghost.js",
        "/console/pages.py",
        "/console/../pages.py",
        "/console/%2e%2e/pages.py",
        "/console/pages",
        "/console//etc/passwd",
        "/console/index.html%00",
    ],
)
def test_nothing_else_is_read_from_the_disk(live: LiveServer, path: str) -> None:
    answer = read(live, path)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "unknown_url"


def test_the_files_keep_the_page_s_own_policy() -> None:
    for name in FILES:
        text = (STATIC / name).read_text()
        assert len(text.splitlines()) < 400, name
        outside = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text)
        assert set(outside) <= {"http://www.w3.org/2000/svg"}, name
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
            assert forbidden not in text, f"{name} makes HTML, or code, of a text"
        assert "localStorage" not in text and "document.cookie" not in text, (
            "a key stays in its tab"
        )
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|style=|<script(?![^>]*src=)|\son\w+=", page)


def test_a_folder_of_the_console_shows_a_dozen_entries() -> None:
    for folder in (STATIC, STATIC / "pages"):
        assert len([*folder.iterdir()]) <= 13
