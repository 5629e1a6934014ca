"""Checks of `[replicas]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from guard.config.tenants_checks import has_password
from guard.config.toml_lines import KeyPath

STORES = ("redis", "rediss", "postgresql", "postgres")
"""The schemes of the URLs of stores."""


def replicas_problems(replicas: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with `[replicas]` as a whole."""
    if not replicas:
        return
    if not ({"store", "store_env"} & replicas.keys()):
        yield ("replicas",), "shares nothing without a store: set 'store' or 'store_env'"
    if "store" in replicas and "store_env" in replicas:
        yield ("replicas", "store_env"), "is in place of 'store': leave one of them out"
    store = replicas.get("store")
    if not isinstance(store, str):
        return
    if store.partition("://")[0] not in STORES:
        yield ("replicas", "store"), "is no redis://, rediss:// or postgresql:// URL"
    elif has_password(store):
        yield (
            ("replicas", "store"),
            "has a password: put the URL into an environment variable, and name that in store_env",
        )
