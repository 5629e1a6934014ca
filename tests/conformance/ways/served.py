"""To `guard serve`, and to it through `guard proxy`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.conformance.clients import Client
from tests.conformance.feature import Feature
from tests.conformance.processes import BUILD, Running, running
from tests.conformance.scripted_model import CONTEXT, save_scripted_model
from tests.conformance.upstream.stub import MODEL
from tests.conformance.ways.interface import KEYS, POLICIES, Way, keys
from tests.conformance.ways.proxied import proxy_before
from tests.conformance.ways.served_features import (
    FEATURES,
    LIMITS,
    SERVED_KEYS,
    At,
)
from tests.server.tiny_pipeline import save_pipeline

SERVE, BEHIND = "serve", "serve behind the proxy"
SCRIPTED = "scripted"
"""The model whose answers are known; any other source is a real one."""
_MOST_TOKENS = 64
"""Of an answer of a real model, which takes its time."""
_ROOM = 2048
"""Tokens of the scripted model's context that are left for prompts."""
_ALL_KEYS = {**KEYS, **SERVED_KEYS}
_INNER_KEY = "key-of-the-proxy"
_MODELS = """
[[models]]
name = "{model}"
source = "{source}"
device = "cpu"
dtype = "{dtype}"
[[models]]
name = "gpt-image-1"
engine = "diffusers"
source = "{pipeline}"
device = "cpu"
steps = 2
[[models]]
name = "text-embedding-3-small"
engine = "onnxruntime"
source = "minilm"
[[models]]
name = "text-embedding-ada-002"
engine = "onnxruntime"
source = "minilm"
"""
_LETTERS = """
[[regex]]
label = "LETTER"
pattern = "[A-Za-z]"
"""
_BLOCKED = """
[[patterns]]
name = "letters"
source = "letters.toml"
[policies.blocked]
guards = ["letters"]
action = "block"
[policies.blocked.screen]
look = ["response"]
"""


class Served(Way):
    """A model answers: what a real one says is not compared, the shape of it is."""

    def __init__(self, name: str, faced: Running, audit: Path, source: str) -> None:
        super().__init__(name, faced)
        self._audit, self._lines = audit, 0
        self._is_scripted = source == SCRIPTED

    @property
    def features(self) -> Sequence[Feature]:
        return FEATURES

    def begin(self, feature: Feature) -> None:
        for policy, most in LIMITS.items():
            if feature.key == SERVED_KEYS[policy]:
                self._use_up(feature.key, most)
        self._lines = len(self._written())

    def seen(self, client: Client, policy: str, result: dict[str, Any]) -> At:
        return At(client, policy, result, self._new_verdicts, self._is_scripted)

    def _new_verdicts(self) -> list[dict[str, Any]]:
        """The lines of the server's audit log since the feature was begun."""
        return [json.loads(line) for line in self._written()[self._lines :]]

    def _written(self) -> list[str]:
        return self._audit.read_text().splitlines() if self._audit.exists() else []

    def _use_up(self, key: str, most: int) -> None:
        """Send requests, which are wrong and cost nothing, until the key's rate is used up."""
        headers = {"Authorization": f"Bearer {key}"}
        for _ in range(2 * most):
            url = f"{self.faced.url}/v1/chat/completions"
            got = httpx.post(url, json={"model": MODEL}, headers=headers, timeout=60)
            if got.status_code == 429:
                return
        raise RuntimeError("the key has no limit")


@contextmanager
def served(source: str) -> Iterator[Served]:
    """The way to a server, while it runs; `source` is its model's."""
    with _server(source, POLICIES + _BLOCKED + keys(_ALL_KEYS, **LIMITS)) as (server, audit):
        yield Served(SERVE, server, audit, source)


@contextmanager
def served_behind_a_proxy(source: str) -> Iterator[Served]:
    """The same through a proxy, which has the policies and the keys."""
    inner = keys({"none": _INNER_KEY})
    outer = POLICIES + _BLOCKED + keys(_ALL_KEYS, **LIMITS)
    with (
        _server(source, inner) as (server, audit),
        proxy_before(server.url, outer, _INNER_KEY) as proxy,
    ):
        yield Served(BEHIND, proxy, audit, source)


@contextmanager
def _server(source: str, config: str) -> Iterator[tuple[Running, Path]]:
    """A server with this model and a tiny one for images, and the path of its audit log."""
    pipeline, audit = BUILD / "pipeline", BUILD / "serve" / "audit.jsonl"
    if not pipeline.exists():
        save_pipeline(pipeline)
    for command in ("serve", "proxy"):
        (BUILD / command).mkdir(parents=True, exist_ok=True)
        (BUILD / command / "letters.toml").write_text(_LETTERS)
    audit.unlink(missing_ok=True)
    most, dtype = _MOST_TOKENS, "bfloat16"
    if source == SCRIPTED:
        most, dtype, source = CONTEXT - _ROOM, "float32", str(BUILD / SCRIPTED)
        save_scripted_model(Path(source))
    head = f'[server]\naudit_log = "audit.jsonl"\nmax_tokens_limit = {most}\n'
    models = _MODELS.format(model=MODEL, source=source, dtype=dtype, pipeline=pipeline)
    with running("serve", head + models + config) as server:
        yield server, audit
