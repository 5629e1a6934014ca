"""Text in images that pass through the proxy, under a policy that has it read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from classifiers.images.encoder import Pixels
from tests.classifiers.images.tiny_encoder import file_of
from tests.server.proxy.screened import BODY
from tests.server.proxy.stand import Proxy, Upstream, chat_completion, proxied, served
from tests.server.proxy.test_images import answering, coded, draw, drawing, image_part, show, url
from tests.server.screen_configs import screen_config, write_list

SAID = {(255, 0, 0): "a forbidden thing", (0, 255, 0): "jane@example.com", (0, 0, 255): "all well"}


class _Reader:
    """Reads a text from each colour."""

    def read(self, image: Pixels) -> str:
        return SAID.get(tuple(map(int, image[0, 0])), "")


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.plans.screens.load_ocr", _Reader)


@contextmanager
def reading(folder: Path, upstream: Upstream, action: str = "block") -> Iterator[Proxy]:
    text = screen_config(action, "ocr = true", source=write_list(folder))
    with served(upstream) as port, proxied(folder, text, port) as proxy:
        yield proxy


@pytest.mark.parametrize(("colour", "status"), [("#ff0000", 400), ("#0000ff", 200)])
def test_text_in_an_image_of_a_chat_is_read(tmp_path: Path, colour: str, status: int) -> None:
    upstream = answering(chat_completion("a square"))
    with reading(tmp_path, upstream) as proxy:
        answer = show(proxy, image_part(url(colour)))
    assert answer.status_code == status and len(upstream.requests) == (status == 200)
    (guard,) = answer.json()["guard"]["guards"]
    assert guard["fired"] == (status == 400) and answer.json()["guard"]["unscreened"] == []
    if status == 400:
        assert guard["place"] == "messages[0].content[1].image_url.url"


def test_what_would_be_redacted_is_blocked(tmp_path: Path) -> None:
    upstream = answering(chat_completion("a square"))
    with reading(tmp_path, upstream, "redact") as proxy:
        assert show(proxy, image_part(url("#00ff00"))).status_code == 400
        body: dict[str, Any] = {
            **BODY,
            "messages": [{"role": "user", "content": "jane@example.com"}],
        }
        assert httpx.post(f"{proxy.url}/v1/chat/completions", json=body).status_code == 200
    assert "jane" not in json.dumps(upstream.requests[0].json)


@pytest.mark.parametrize(("colour", "status"), [("#ff0000", 400), ("#0000ff", 200)])
def test_text_in_an_image_that_is_drawn_is_read(tmp_path: Path, colour: str, status: int) -> None:
    with reading(tmp_path, drawing({"b64_json": coded(file_of(colour))})) as proxy:
        answer = draw(proxy)
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["code"] == "content_policy_violation"
