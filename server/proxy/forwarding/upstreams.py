"""The upstreams of a proxy, and the choice of the one that gets a request."""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from guard.config.proxy_schema import UpstreamConfig
from guard.config.upstream_urls import url_of
from guard.errors import ConfigError, PolicyUnfit, UnknownModel
from server.errors import Overloaded
from server.proxy.forwarding.breaker import Breaker
from server.proxy.forwarding.headers import RawHeaders


@dataclass(eq=False)
class Upstream:
    """An upstream. `healthy` is the result of its last health check; True where it has none."""

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
        """Whether it may get a request now."""
        return self.healthy and self.breaker.wait_s == 0

    def url(self, path: str, query: str) -> str:
        """The URL of a request for `path`, which is percent-encoded."""
        return url_of(self.config, path) + (f"?{query}" if query else "")


class Upstreams:
    """The upstreams of a proxy. Raises ConfigError where a credential is not in the environment.

    `rng` chooses among equals.
    """

    def __init__(
        self,
        configs: Sequence[UpstreamConfig],
        environment: Mapping[str, str] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        environment = os.environ if environment is None else environment
        missing = [
            f"upstreams: {config.name}: the environment variable {config.key_env} is not set: set "
            "it to the upstream's credential, or leave out key_env"
            for config in configs
            if config.key_env is not None and not environment.get(config.key_env)
        ]
        if missing:
            raise ConfigError(missing)
        self.all = [
            Upstream(
                config,
                _credential(config, environment),
                Breaker(config.failures, config.cooldown_s),
            )
            for config in configs
        ]
        self.delegates = any(config.plugin for config in configs)
        """Whether an upstream runs our plugin for vLLM."""
        self.mcp = {config.mcp: config.name for config in configs if config.mcp is not None}
        """The names of the servers of MCP, by their paths."""
        self._rng = rng or random.Random()

    def choose(
        self,
        model: str | None,
        name: str | None = None,
        without: Collection[Upstream] = (),
        *,
        needs_plugin: bool = False,
    ) -> Upstream:
        """The upstream of a request: that of `name`, else one of those that have its model.

        Those in `without` have failed for it; `needs_plugin`: only our plugin applies its policy.
        Raises UnknownModel where no upstream is configured for the model, PolicyUnfit where none
        of them has the plugin, Overloaded where none can take the request now.
        """
        if name is not None:
            candidates = [upstream for upstream in self.all if upstream.name == name]
        else:
            candidates = self._serving(model)
        if not candidates:
            raise UnknownModel(f"No upstream has the model {(model or '')[:80]!r}.", param="model")
        if needs_plugin:
            candidates = [upstream for upstream in candidates if upstream.config.plugin]
            if not candidates:
                raise PolicyUnfit(
                    f"no upstream that has the model {(model or '')[:80]!r} runs the plugin that "
                    "applies the policy: ask for another policy or model",
                    param="guard.policy",
                )
        ready = [c for c in candidates if c.ready and c not in without]
        if not ready:
            wait_s = min(upstream.breaker.wait_s for upstream in candidates)
            names = ", ".join(upstream.name for upstream in candidates)
            raise Overloaded(f"No upstream is there now ({names}).", retry_after=max(1.0, wait_s))
        weights = [upstream.config.weight or 1.0 for upstream in ready]
        return self._rng.choices(ready, weights)[0]

    def delegates_for(self, model: str | None, routed: str | None = None) -> bool:
        """Whether a request for `model` may reach our plugin for vLLM; `routed` is the upstream to
        which a screen may route it."""
        candidates = self._serving(model)
        candidates += [upstream for upstream in self.all if upstream.name == routed]
        return any(upstream.config.plugin for upstream in candidates)

    def _serving(self, model: str | None) -> list[Upstream]:
        """The upstreams with a model, each of them where `model` is None."""
        return [
            upstream
            for upstream in self.all
            if upstream.config.weight
            and upstream.config.mcp is None
            and (model is None or not upstream.config.models or model in upstream.config.models)
        ]


def _credential(config: UpstreamConfig, environment: Mapping[str, str]) -> RawHeaders:
    if config.key_env is None:
        return []
    key = environment[config.key_env].strip()
    value = f"Bearer {key}" if config.key_header == "authorization" else key
    return [(config.key_header.encode(), value.encode())]
