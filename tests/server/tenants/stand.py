"""A database with an organisation, a team, a key of it, and keys of the other roles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from guard.config.schema import Config
from guard.config.tenants_schema import TenantsConfig
from guard.tenants.database import Database, url_in
from guard.tenants.levels import LevelSettings
from guard.tenants.store import TenantStore
from tests.server.live_server import LiveServer, live_server, settings


@dataclass
class Tenants:
    """The database's file, and keys by role."""

    path: Path
    tenant: str
    admin: str
    auditor: str


@contextmanager
def store_at(path: Path) -> Iterator[TenantStore]:
    url = url_in(TenantsConfig(database=str(path)))
    assert url is not None
    database = Database(url)
    yield TenantStore(database, None)
    database.close()


def seeded(path: Path, **levels: Mapping[str, Any]) -> Tenants:
    """`levels`: the settings of the organisation, the team and the key."""
    found = {
        kind: LevelSettings.model_validate(levels.get(kind, {}))
        for kind in ("organisation", "team", "key")
    }
    with store_at(path) as store:
        store.new_organisation("acme", found["organisation"])
        store.new_team("acme", "research", found["team"])
        _, tenant = store.new_key("acme/research", "laptop", found["key"])
        _, admin = store.new_key(None, "root", LevelSettings(), role="admin")
        _, auditor = store.new_key(None, "reader", LevelSettings(), role="auditor")
    return Tenants(path, tenant, admin, auditor)


@contextmanager
def tenanted(
    folder: Path, server: Mapping[str, Any] | None = None, **levels: Mapping[str, Any]
) -> Iterator[tuple[LiveServer, Tenants]]:
    """A running server with such a database."""
    tenants = seeded(folder / "tenants.sqlite", **levels)
    raw = settings(**(server or {}))
    raw["tenants"] = {"database": str(tenants.path), "refresh_s": 0.1}
    with live_server(config=Config.model_validate(raw)) as live:
        yield live, tenants


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def asked(live: LiveServer, key: str, text: str = "hi", **options: Any) -> httpx.Response:
    """A chat, asked with this key."""
    body = {"model": "fake", "messages": [{"role": "user", "content": text}], **options}
    return live.post("/v1/chat/completions", json=body, headers=bearer(key))
