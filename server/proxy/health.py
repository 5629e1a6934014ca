"""Health checks of the upstreams."""

from __future__ import annotations

import asyncio
import logging

import aiohttp

from server.proxy.forward import Forwarder
from server.proxy.upstreams import Upstream

logger = logging.getLogger(__name__)

_TIMEOUT_S = 3.0


async def poll_health(forwarder: Forwarder) -> None:
    """Check each upstream that has a health path, every `health_every_s`, until cancelled."""
    upstreams = [upstream for upstream in forwarder.upstreams.all if upstream.config.health]
    await asyncio.gather(*(_poll(forwarder.session, upstream) for upstream in upstreams))


async def _poll(session: aiohttp.ClientSession, upstream: Upstream) -> None:
    while True:
        is_healthy = await _check(session, upstream)
        if is_healthy != upstream.healthy:
            state = "healthy again" if is_healthy else "not healthy"
            logger.warning("upstream %s is %s", upstream.name, state)
        upstream.healthy = is_healthy
        await asyncio.sleep(upstream.config.health_every_s)


async def _check(session: aiohttp.ClientSession, upstream: Upstream) -> bool:
    headers = [(name.decode(), value.decode()) for name, value in upstream.credential]
    url = upstream.url(upstream.config.health or "", "")
    try:
        # a redirect must not take the credential elsewhere
        request = session.get(url, headers=headers, allow_redirects=False)
        async with asyncio.timeout(_TIMEOUT_S), request as response:
            return response.status < 300
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
