"""Names and places in requests and answers of a proxy, read by a pipeline of spaCy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytest.importorskip("presidio_analyzer", reason="pip install 'inference-guard[ner]'")

from tests.classifiers.text.entities.tiny_models import save_ruler  # noqa: E402
from tests.server.proxy.screened import answering, ask, read_stream  # noqa: E402
from tests.server.proxy.stand import (  # noqa: E402
    Proxy,
    Upstream,
    chat_stream,
    proxied,
    served,
)

CONFIG = """
[server]
default_policy = "p"
[[patterns]]
name = "people"
source = "entities"
model = "./names"
entities = ["PERSON", "LOCATION"]
[policies.p]
guards = ["people"]
action = "{action}"
[policies.p.screen]
restore = {restore}
"""


@contextmanager
def _proxy(
    folder: Path, upstream: Upstream, action: str = "redact", restore: str = "true"
) -> Iterator[Proxy]:
    save_ruler(folder / "names")
    text = CONFIG.format(action=action, restore=restore)
    with served(upstream) as port, proxied(folder, text, port) as proxy:
        yield proxy


def test_a_model_does_not_see_names_and_the_client_does(tmp_path: Path) -> None:
    upstream = answering("I have written to [PERSON_1] in [LOCATION_1].")
    with _proxy(tmp_path, upstream) as proxy:
        response = ask(proxy, "Write to Ada Lovelace in London, and tell Ada Lovelace of it.")
        seen = json.loads(upstream.requests[0].body)["messages"][0]["content"]
        assert seen == "Write to [PERSON_1] in [LOCATION_1], and tell [PERSON_1] of it."
        text = response.json()["choices"][0]["message"]["content"]
        assert text == "I have written to Ada Lovelace in London."
        (guard,) = response.json()["guard"]["guards"]
        assert guard["fired"] and guard["action"] == "redact" and guard["method"] == "entities"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_names_in_a_stream_are_cut_out_however_it_comes(tmp_path: Path, size: int) -> None:
    answer = "It is said that Grace Hopper has been in Vienna. " * 8
    parts = [answer[at : at + size] for at in range(0, len(answer), size)]
    with _proxy(tmp_path, Upstream(chat_stream(parts)), restore="false") as proxy:
        text, events, ended = read_stream(ask(proxy, "hello", stream=True))
        assert text == "It is said that [PERSON_1] has been in [LOCATION_1]. " * 8
        assert ended and events[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_stream_ends_before_a_name_that_is_blocked(tmp_path: Path) -> None:
    parts = ["all ", "of it ", "was by Alan ", "Turing, ", "they say"]
    with _proxy(tmp_path, Upstream(chat_stream(parts)), "block", "false") as proxy:
        text, events, _ = read_stream(ask(proxy, "hello", stream=True))
        assert "Alan" not in text and "all of it was by ".startswith(text)
        assert events[-1]["choices"][0]["finish_reason"] == "content_filter"


def test_two_messages_with_a_name_each_are_let_through(tmp_path: Path) -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "user", "content": "I am in Paris"},
            {"role": "user", "content": "Ada Lovelace is not"},
        ],
    }
    upstream = answering("fine")
    with _proxy(tmp_path, upstream) as proxy:
        response = httpx.post(f"{proxy.url}/v1/chat/completions", json=body, timeout=20)
        assert response.status_code == 200
        seen = [m["content"] for m in json.loads(upstream.requests[0].body)["messages"]]
        assert seen == ["I am in [LOCATION_1]", "[PERSON_1] is not"]


def test_a_model_that_finds_something_else_refuses_requests(tmp_path: Path) -> None:
    save_ruler(tmp_path / "names")
    text = CONFIG.format(action="redact", restore="true").replace('"LOCATION"', '"NRP"')
    upstream = answering("fine")
    with served(upstream) as port, proxied(tmp_path, text, port) as proxy:
        response = ask(proxy, "hello")
        assert response.status_code == 500 and not upstream.requests
        assert "does not find NRP" in response.text
