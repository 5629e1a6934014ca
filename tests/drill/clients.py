"""Clients that ask without end, whole and streamed, hang up, and note what they got."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp

from tests.drill.upstream import ANSWER_SECRET, CLIENT_SECRET

HANGS_UP, STREAMS = 0.15, 0.6
"""Shares of requests."""
_TIMEOUT = aiohttp.ClientTimeout(total=30)


@dataclass(frozen=True, slots=True)
class Finished:
    """A request whose whole answer has come: its id, the replica that answered, and when."""

    request_id: str
    replica: int
    at: float


@dataclass
class Seen:
    """What all clients got: answers by status, whole ones, and those with the upstream's secret."""

    statuses: Counter[str] = field(default_factory=Counter)
    finished: list[Finished] = field(default_factory=list)
    unguarded: int = 0


async def ask_until(
    end: float, replicas: Sequence[str], key: Callable[[], str], count: int, seen: Seen
) -> None:
    """Run `count` clients until the monotonic time `end`."""
    connector = aiohttp.TCPConnector(limit=0, force_close=False)
    async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session:
        await asyncio.gather(
            *(_client(number, end, session, replicas, key, seen) for number in range(count))
        )


async def _client(
    number: int,
    end: float,
    session: aiohttp.ClientSession,
    replicas: Sequence[str],
    key: Callable[[], str],
    seen: Seen,
) -> None:
    rng, turn = random.Random(number), 0
    while time.monotonic() < end:
        turn += 1
        replica, request_id = rng.randrange(len(replicas)), f"drill-{number}-{turn}"
        try:
            await _ask(session, replicas[replica], replica, request_id, key(), rng, seen)
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            seen.statuses[f"no answer ({type(error).__name__})"] += 1
            await asyncio.sleep(0.2)
        await asyncio.sleep(rng.random() * 0.2)


async def _ask(
    session: aiohttp.ClientSession,
    url: str,
    replica: int,
    request_id: str,
    key: str,
    rng: random.Random,
    seen: Seen,
) -> None:
    is_stream = rng.random() < STREAMS
    text = f"Write to jane.doe{rng.randrange(10**6)}{CLIENT_SECRET} about the history of bicycles."
    body = {
        "model": "stub",
        "stream": is_stream,
        "messages": [{"role": "user", "content": text}],
    }
    headers = {"authorization": f"Bearer {key}", "x-request-id": request_id}
    hangs_up = rng.random() < HANGS_UP
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
        content = b""
        async for chunk in response.content.iter_any():
            content += chunk
            if hangs_up and len(content) > 200:
                seen.statuses["hung up"] += 1
                return
        status = str(response.status)
    said = _said(content, is_stream=is_stream and status == "200")
    seen.unguarded += ANSWER_SECRET in said
    seen.statuses[status] += 1
    if status == "200":
        is_whole = b"data: [DONE]" in content if is_stream else True
        if is_whole:
            seen.finished.append(Finished(request_id, replica, time.time()))
        else:
            seen.statuses["ended by an error"] += 1


def _said(content: bytes, *, is_stream: bool) -> str:
    """The text that a client puts together, all of the body where it is no stream."""
    if not is_stream:
        return content.decode(errors="replace")
    parts = []
    for line in content.decode(errors="replace").splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            for choice in event.get("choices", ()):
                parts.append(choice["delta"].get("content") or "")
    return "".join(parts)
