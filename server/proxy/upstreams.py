"""The upstreams of a proxy: which one gets a request, and which are left alone."""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from guard.config.schema import UpstreamConfig
from guard.errors import ConfigError, UnknownModel
from server.errors import Overloaded
from server.proxy.breaker import Breaker
from server.proxy.headers import RawHeaders


@dataclass(eq=False)
class Upstream:
    """One of them. `healthy` is what its health check last said; True where it has none."""

    config: UpstreamConfig
    credential: RawHeaders = field(repr=False)
    breaker: Breaker
    healthy: bool = True
    in_flight: int = 0

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def ready(self) -> bool:
        """Whether it would get a request now."""
        return self.healthy and self.breaker.wait_s == 0

    def url(self, path: str, query: str) -> str:
        """Where a request for `path` (as it came, percent-encoded) goes. A base may end in /v1, as
        those of OpenAI's clients do, which is in the paths already."""
        base = self.config.url.rstrip("/").removesuffix("/v1")
        return base + path + (f"?{query}" if query else "")


class Upstreams:
    """All of them. Raises ConfigError where a credential is not in the environment."""

    def __init__(
        self,
        configs: Sequence[UpstreamConfig],
        environment: Mapping[str, str] | None = None,
        draw: random.Random | None = None,
    ) -> None:
        environment = os.environ if environment is None else environment
        missing = [
            f"upstreams: {each.name}: the environment variable {each.key_env} is not set: set it "
            "to the upstream's credential, or leave out key_env"
            for each in configs
            if each.key_env is not None and not environment.get(each.key_env)
        ]
        if missing:
            raise ConfigError(missing)
        self.all = [
            Upstream(each, _credential(each, environment), Breaker(each.failures, each.cooldown_s))
            for each in configs
        ]
        self.delegates = any(each.plugin for each in configs)
        """Whether an upstream runs our plugin."""
        self._draw = draw or random.Random()

    def choose(
        self, model: str | None, name: str | None = None, without: Collection[Upstream] = ()
    ) -> Upstream:
        """One for a request: that of `name`, else one of those that have its model.

        Those in `without` have failed for it. Raises UnknownModel where none ever has the model,
        Overloaded where none can take it now.
        """
        if name is not None:
            fitting = [each for each in self.all if each.name == name]
        else:
            fitting = [
                each
                for each in self.all
                if each.config.weight
                and (model is None or not each.config.models or model in each.config.models)
            ]
        if not fitting:
            raise UnknownModel(f"No upstream has the model {(model or '')[:80]!r}.", param="model")
        ready = [each for each in fitting if each.ready and each not in without]
        if not ready:
            wait_s = min(each.breaker.wait_s for each in fitting)
            names = ", ".join(each.name for each in fitting)
            raise Overloaded(f"No upstream is there now ({names}).", retry_after=max(1.0, wait_s))
        weights = [each.config.weight or 1.0 for each in ready]
        return self._draw.choices(ready, weights)[0]


def _credential(config: UpstreamConfig, environment: Mapping[str, str]) -> RawHeaders:
    if config.key_env is None:
        return []
    key = environment[config.key_env].strip()
    value = f"Bearer {key}" if config.key_header == "authorization" else key
    return [(config.key_header.encode(), value.encode())]
