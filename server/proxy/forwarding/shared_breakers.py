"""The breakers of all replicas of a proxy, kept alike through their store."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence

from guard.replicas.store import ReplicaStore, StoreUnavailable
from server.proxy.forwarding.upstreams import Upstream

logger = logging.getLogger(__name__)


async def share_breakers(
    store: ReplicaStore, upstreams: Sequence[Upstream], every_s: float
) -> None:
    """Report to the store what has happened to each upstream, and take what all replicas know,
    until cancelled. While the store does not answer, each breaker goes by its own requests."""
    loop = asyncio.get_running_loop()
    names = [_name(upstream) for upstream in upstreams]
    is_up = True
    while upstreams:
        started = loop.time()
        reports = [u.breaker.report(name) for u, name in zip(upstreams, names, strict=True)]
        try:
            states = await asyncio.to_thread(store.breakers, reports)
        except StoreUnavailable as error:
            for upstream, report in zip(upstreams, reports, strict=True):
                upstream.breaker.report_again(report)
            if is_up:
                logger.error("breakers are not shared: %s", error)
            is_up = False
        else:
            for upstream, state in zip(upstreams, states, strict=True):
                upstream.breaker.adopt(state)
            if not is_up:
                logger.error("breakers are shared again")
            is_up = True
        # a slow store is asked less often
        await asyncio.sleep(max(every_s, 4 * (loop.time() - started)))


def _name(upstream: Upstream) -> str:
    """One name for the upstream in every replica, and another one for another address."""
    address = hashlib.sha256(upstream.config.url.encode()).hexdigest()[:16]
    return f"{upstream.name} {address}"
