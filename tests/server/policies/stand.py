"""Proxies whose policies change while they run, and their administrator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from guard.tenants.secret import hash_key
from tests.server.proxy.screened import answering, post
from tests.server.proxy.stand import Proxy, Upstream, proxied, served

SECRET = "root-key"
ADMIN = {"Authorization": f"Bearer {SECRET}"}


def until(holds: Callable[[], Any], what: str = "it") -> Any:
    """What `holds` gives, once that is something, within 20 seconds."""
    end = time.monotonic() + 20
    while not (found := holds()):
        assert time.monotonic() < end, f"{what} did not come true"
        time.sleep(0.02)
    return found


def write_config(folder: Path, policies: str = "", more: str = "") -> str:
    """A configuration with the lists "words" (forbidden), "names" (Tom), and the policy "strict",
    which blocks the words; returns its text."""
    for name, word in (("words", "forbidden"), ("names", "Tom")):
        text = f'[[words]]\nlabel = "WORD"\nwords = ["{word}"]\n'
        (folder / f"{name}.toml").write_text(text)
    policies = policies or '[policies.strict]\nguards = ["words"]\naction = "block"\n'
    return f"""
[server]
default_policy = "strict"
audit_log = "audit.jsonl"
admin_hash = "{hash_key(SECRET)}"

[live_policies]
database = "versions.sqlite"
refresh_s = 0.05

[[patterns]]
name = "words"
source = "words.toml"

[[patterns]]
name = "names"
source = "names.toml"

{policies}{more}"""


@dataclass
class Administrator:
    """Asks a proxy or a server as its administrator."""

    proxy: Proxy

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        url = f"{self.proxy.url}/guard/v1/policies/{path}"
        headers = options.pop("headers", ADMIN)
        return httpx.request(method, url, headers=headers, timeout=20, **options)

    def put(self, name: str, settings: Any, **more: Any) -> httpx.Response:
        return self.ask("PUT", name, json={"settings": settings, **more})

    def said(self, text: str, **options: Any) -> str:
        """The outcome of a chat about `text`."""
        messages = [{"role": "user", "content": text}]
        answer = post(self.proxy, messages=messages, **options)
        assert answer.status_code in {200, 400}, answer.text
        return answer.headers["x-guard-verdict"]


@contextmanager
def administered(
    folder: Path, policies: str = "", more: str = "", upstream: Upstream | None = None
) -> Iterator[Administrator]:
    """A proxy of `write_config`, in front of an upstream that answers "hello"."""
    text = write_config(folder, policies, more)
    with served(upstream or answering("hello")) as port, proxied(folder, text, port) as proxy:
        yield Administrator(proxy)
