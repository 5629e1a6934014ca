"""What is told of a level, by the command and over HTTP: no secret, and no hash of one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from guard.tenants.levels import Key, Level, Team, kind_of, usage_id
from guard.tenants.meters import period_of, utc_now
from guard.tenants.store import TenantStore


def facts_of(store: TenantStore, levels: Sequence[Level]) -> list[dict[str, Any]]:
    """Each level with its settings and what it has used this month. Raises TenantsUnavailable."""
    period = period_of(utc_now())
    names = [usage_id(kind_of(level), level.id) for level in levels]
    used = store.usage_of(names, period) if names else {}
    found = []
    for level, name in zip(levels, names, strict=True):
        row = used.get(name)
        usage = {
            "period": period,
            "requests": row.requests if row is not None else 0,
            "tokens": row.tokens if row is not None else 0,
        }
        found.append(_facts(level) | {"usage": usage})
    return found


def _facts(level: Level) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "object": kind_of(level),
        "id": level.id,
        "name": level.name,
        "created": _moment(level.created),
        "revoked": _moment(level.revoked),
    }
    if isinstance(level, Team):
        facts["organisation"] = level.organisation
    elif isinstance(level, Key):
        facts |= {
            "team": level.team,
            "role": level.role,
            "expires": _moment(level.expires),
            "previous_until": _moment(level.previous_until),
        }
    return facts | level.settings.model_dump(mode="json")


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
