"""The rows of one HTTP request for text: merged, timed, cancelled when the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.types import Receive

from server.errors import ClientGone, RequestTimeout
from server.services.interface import (
    Event,
    FinishedText,
    RowEvents,
    TextRowRequest,
    TextService,
    TokenLogprob,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TextJob:
    """The text rows of one request, admitted but not yet submitted.

    Each prompt has `copies` rows, one behind the other.
    """

    service: TextService
    requests: Sequence[TextRowRequest]
    copies: int
    deadline: float
    """On the event loop's clock."""

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[tuple[int, Event]]]:
        """Submit the rows; the context is an iterator of (row index, event) as they come.

        Raises the errors of `TextService.prepare` and `submit`, the first error of a row, and
        RequestTimeout at the deadline. Leaving the context, in whatever way, cancels rows that
        still run.
        """
        rows: Sequence[RowEvents] = ()
        pumps: list[asyncio.Task[None]] = []
        timer = asyncio.timeout_at(self.deadline)
        try:
            async with timer:
                await self.service.prepare(self.requests)
                rows = self.service.submit(self.requests)
                merged: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()
                pumps = [asyncio.create_task(_pump(i, row, merged)) for i, row in enumerate(rows)]
                yield _drain(merged, len(rows))
        except TimeoutError:
            if not timer.expired():
                raise
            raise RequestTimeout("The answer took longer than this server allows.") from None
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for row in rows:
                await row.aclose()


async def _pump(index: int, row: RowEvents, merged: asyncio.Queue[Any]) -> None:
    try:
        async for event in row:
            merged.put_nowait((index, event))
            if isinstance(event, FinishedText):
                return
        raise RuntimeError("a row ended without its last event")
    except Exception as error:
        merged.put_nowait((index, error))


async def _drain(
    merged: asyncio.Queue[tuple[int, Event | Exception]], running: int
) -> AsyncGenerator[tuple[int, Event]]:
    while running:
        index, event = await merged.get()
        if isinstance(event, Exception):
            raise event
        running -= isinstance(event, FinishedText)
        yield index, event


@dataclass(slots=True)
class CollectedText:
    """A finished row, its events collected."""

    finished: FinishedText
    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)


async def collect(job: TextJob) -> list[CollectedText]:
    """All rows of `job`, in order, when the last one has finished. Raises as `TextJob.events`."""
    texts: list[list[str]] = [[] for _ in job.requests]
    tokens: list[list[TokenLogprob]] = [[] for _ in job.requests]
    finished: dict[int, FinishedText] = {}
    async with job.events() as events:
        async for index, event in events:
            if isinstance(event, FinishedText):
                finished[index] = event
            else:
                texts[index].append(event.text)
                tokens[index].extend(event.tokens)
    return [CollectedText(finished[i], "".join(texts[i]), tokens[i]) for i in range(len(texts))]


@dataclass(frozen=True, slots=True)
class Usage:
    """Number of tokens of one HTTP request; a prompt that several choices share counts once."""

    prompt: int
    completion: int

    @classmethod
    def of(cls, finished: Sequence[FinishedText], copies: int) -> Usage:
        """`finished` in the order of the rows."""
        return cls(
            prompt=sum(row.prompt_tokens for row in finished[::copies]),
            completion=sum(row.completion_tokens for row in finished),
        )

    def as_dict(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; cancels it and raises ClientGone where the client disconnects first.

    The request's body must have been read: the only message after it is the disconnect.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("The client hung up before its answer was ready.")
        return task.result()
    finally:
        watcher.cancel()
        task.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
