"""Through the proxy to the scripted upstream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.conformance.clients import Client
from tests.conformance.feature import Feature
from tests.conformance.processes import Running, running
from tests.conformance.upstream.stub import UPSTREAM_KEY, Stub
from tests.conformance.ways.interface import KEYS, POLICIES, Way, keys
from tests.conformance.ways.proxied_features import FEATURES, Through
from tests.server.proxy.stand import served

PROXY = "proxy"
_UPSTREAM = """
[[upstreams]]
name = "upstream"
url = "{url}/v1"
key_env = "UPSTREAM_KEY"
"""


class Proxied(Way):
    """The upstream plays what a feature's script says."""

    def __init__(self, faced: Running, stub: Stub) -> None:
        super().__init__(PROXY, faced)
        self._stub = stub

    @property
    def features(self) -> Sequence[Feature]:
        return FEATURES

    def begin(self, feature: Feature) -> None:
        self._stub.play(feature.script)

    def seen(self, client: Client, policy: str, result: dict[str, Any]) -> Through:
        return Through(client, policy, result, self._stub)


@contextmanager
def proxied() -> Iterator[Proxied]:
    """The way, while its servers run."""
    stub = Stub()
    with (
        served(stub.app) as port,
        proxy_before(f"http://127.0.0.1:{port}", POLICIES + keys(KEYS), UPSTREAM_KEY) as proxy,
    ):
        yield Proxied(proxy, stub)


@contextmanager
def proxy_before(url: str, config: str, key: str) -> Iterator[Running]:
    """`guard proxy` before the server at `url`, which takes `key`."""
    upstream = _UPSTREAM.format(url=url)
    with running("proxy", config + upstream, UPSTREAM_KEY=key) as proxy:
        yield proxy
