"""What is left of a key's limits, in the headers of each API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from guard.tenants.meters import RateLimit
from server.error_shapes import ANTHROPIC, ErrorShape


def limit_headers(
    shape: ErrorShape, requests: RateLimit | None, tokens: RateLimit | None
) -> dict[str, str]:
    """The headers for the limits that there are, named as the clients of this API know them."""
    headers = {}
    for what, limit in (("requests", requests), ("tokens", tokens)):
        if limit is None:
            continue
        if shape is ANTHROPIC:
            name = f"anthropic-ratelimit-{what}-"
            headers[f"{name}limit"] = str(limit.limit)
            headers[f"{name}remaining"] = str(limit.remaining)
            headers[f"{name}reset"] = _moment_in(limit.reset_s)
        else:
            headers[f"x-ratelimit-limit-{what}"] = str(limit.limit)
            headers[f"x-ratelimit-remaining-{what}"] = str(limit.remaining)
            headers[f"x-ratelimit-reset-{what}"] = _duration(limit.reset_s)
    return headers


def _duration(seconds: float) -> str:
    """As OpenAI writes one: "20ms", "1.5s", "6m0s"."""
    if seconds < 1:
        return f"{round(1000 * seconds)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"


def _moment_in(seconds: float) -> str:
    """A moment of RFC 3339, in whole seconds."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
