"""What a configuration means for `guard proxy`: guards that act there, URLs that are asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from guard.commands.tables import add_row, new_table
from guard.config.proxy_schema import UpstreamConfig
from guard.config.schema import Config
from guard.config.upstream_urls import lacks_version, url_of
from steering.methods import SCREENS

_CHAT = "/v1/chat/completions"


def describe_upstream(upstream: UpstreamConfig) -> dict[str, Any]:
    """An upstream, JSON-ready: its settings, the URL that a chat or a tool asks, and whether its
    credential is in the environment (None: it has none)."""
    credential = None if upstream.key_env is None else bool(os.environ.get(upstream.key_env))
    asks = url_of(upstream, upstream.mcp or _CHAT)
    return upstream.model_dump(mode="json") | {"asks": asks, "credential_is_set": credential}


def describe_policy(config: Config, name: str, guards: Mapping[str, dict[str, Any]]) -> Any:
    """Which guards of a policy act in `guard proxy`, JSON-ready; None without upstreams."""
    if not config.upstreams:
        return None
    policy = config.policy(name)
    acting = [guard for guard in policy.guards if guards[guard]["kind"] in SCREENS]
    has_plugin = any(upstream.plugin for upstream in config.upstreams)
    return {
        "act": acting,
        "cannot_act": [guard for guard in policy.guards if guard not in acting],
        "upstream_policy": policy.screen.upstream_policy if has_plugin else None,
    }


def warnings_of(config: Config) -> Iterator[str]:
    """What would keep `guard proxy` from doing what the configuration asks for."""
    for upstream in config.upstreams:
        if upstream.key_env is not None and not os.environ.get(upstream.key_env):
            yield (
                f"upstream {upstream.name}: the environment variable {upstream.key_env} is not set "
                "here: guard proxy does not start without it"
            )
        if lacks_version(upstream):
            yield (
                f"upstream {upstream.name}: its url has no version, as the base URL of OpenAI's "
                f"clients has: a chat asks {url_of(upstream, _CHAT)}"
            )


def tables_of(meaning: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of a configuration with upstreams."""
    if not meaning["upstreams"]:
        return
    columns = ("name", "asks", "key_env", "models", "weight", "health", "plugin")
    upstreams = new_table("Upstreams", *columns)
    for upstream in meaning["upstreams"]:
        key = upstream["key_env"]
        if key is not None:
            key += ": set" if upstream["credential_is_set"] else ": not set"
        models = ", ".join(upstream["models"]) or ("any" if upstream["mcp"] is None else "-")
        cells = upstream | {"models": models, "key_env": key}
        if upstream["mcp"] is not None:
            cells["asks"] = f"{upstream['asks']} for {upstream['mcp']}"
        add_row(upstreams, *(cells[column] for column in columns))
    yield upstreams
    policies = new_table(
        "Policies in guard proxy", "policy", "act", "cannot act", "upstream policy"
    )
    for name, policy in meaning["policies"].items():
        proxied = policy["in_proxy"]
        lists = (", ".join(proxied[key]) or "-" for key in ("act", "cannot_act"))
        add_row(policies, name, *lists, proxied["upstream_policy"])
    yield policies
