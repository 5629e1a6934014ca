"""Checks of the sections about tenants."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from guard.config.toml_lines import KeyPath


def tenants_problems(
    tenants: Mapping[str, Any], oidc: Mapping[str, Any]
) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with `[tenants]` and `[oidc]` together."""
    yield from database_problems("tenants", tenants)
    if not oidc:
        return
    if not ({"database", "database_env"} & tenants.keys()):
        yield ("oidc",), "needs the teams that tokens are for: add a database to [tenants]"
    for name in ("issuer", "audience"):
        if name not in oidc:
            yield ("oidc",), f"needs {name!r}: a token is taken from this issuer for this audience"
    for name in ("issuer", "jwks_url"):
        if isinstance(url := oidc.get(name), str) and url.startswith("http:") and not _is_here(url):
            yield (
                ("oidc", name),
                "should be https: who can change the answer signs tokens for anybody",
            )


def database_problems(section: str, settings: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with the database that a section names."""
    database = settings.get("database")
    if "database" in settings and "database_env" in settings:
        yield (section, "database_env"), "is in place of 'database': leave one of them out"
    if isinstance(database, str) and "://" in database and has_password(database):
        yield (
            (section, "database"),
            "has a password: put the URL into an environment variable, and name that in "
            "database_env",
        )


def has_password(url: str) -> bool:
    """Whether a URL has a password, or may have one."""
    try:
        return urlsplit(url).password is not None
    except ValueError:
        return True


def _is_here(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
