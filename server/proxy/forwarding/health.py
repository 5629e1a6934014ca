"""Health checks of the upstreams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import aiohttp

from server.proxy.forwarding.upstreams import Upstream

logger = logging.getLogger(__name__)

_TIMEOUT_S = 3.0


async def poll_health(session: aiohttp.ClientSession, upstreams: Sequence[Upstream]) -> None:
    """Check each upstream that has a health path, every `health_every_s`, until cancelled."""
    checked = [upstream for upstream in upstreams if upstream.config.health]
    await asyncio.gather(*(_poll(session, upstream) for upstream in checked))


async def answers(session: aiohttp.ClientSession, upstream: Upstream) -> bool:
    """Whether an upstream is there: it answers a request that costs it nothing."""
    status = await _status(session, upstream, upstream.config.health or "/v1/models")
    return status is not None and status < 500


async def _poll(session: aiohttp.ClientSession, upstream: Upstream) -> None:
    while True:
        is_healthy = await _check(session, upstream)
        if is_healthy != upstream.healthy:
            state = "healthy again" if is_healthy else "not healthy"
            logger.warning("upstream %s is %s", upstream.name, state)
        upstream.healthy = is_healthy
        await asyncio.sleep(upstream.config.health_every_s)


async def _check(session: aiohttp.ClientSession, upstream: Upstream) -> bool:
    status = await _status(session, upstream, upstream.config.health or "")
    return status is not None and status < 300


async def _status(session: aiohttp.ClientSession, upstream: Upstream, path: str) -> int | None:
    """The status of the answer, None where there is none in time."""
    headers = [(name.decode(), value.decode()) for name, value in upstream.credential]
    url = upstream.url(path, "")
    try:
        # a redirect must not take the credential elsewhere
        request = session.get(url, headers=headers, allow_redirects=False)
        async with asyncio.timeout(_TIMEOUT_S), request as response:
            return response.status
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None
