"""Asking upstreams whether they are there."""

from __future__ import annotations

import asyncio
import logging

import aiohttp

from server.proxy.forward import Forwarder
from server.proxy.upstreams import Upstream

logger = logging.getLogger(__name__)

_PATIENCE_S = 3.0


async def watch_health(forwarder: Forwarder) -> None:
    """Ask each upstream that has a health path, every so often, until cancelled."""
    watched = [each for each in forwarder.upstreams.all if each.config.health]
    await asyncio.gather(*(_watch(forwarder.session, each) for each in watched))


async def _watch(session: aiohttp.ClientSession, upstream: Upstream) -> None:
    while True:
        well = await _asks(session, upstream)
        if well != upstream.healthy:
            logger.warning("upstream %s is %s", upstream.name, "well again" if well else "not well")
        upstream.healthy = well
        await asyncio.sleep(upstream.config.health_every_s)


async def _asks(session: aiohttp.ClientSession, upstream: Upstream) -> bool:
    headers = [(name.decode(), value.decode()) for name, value in upstream.credential]
    url = upstream.url(upstream.config.health or "", "")
    try:
        # where it is sent to elsewhere, the credential must not go with it
        asked = session.get(url, headers=headers, allow_redirects=False)
        async with asyncio.timeout(_PATIENCE_S), asked as response:
            return response.status < 300
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
