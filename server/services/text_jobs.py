"""Running the rows of one HTTP request: merged, timed, and cancelled when nobody listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.types import Receive

from server.errors import ClientGone, RequestTimeout
from server.services.interface import (
    FinishedText,
    TextDelta,
    TextRowRequest,
    TextService,
    TokenLogprob,
    TokenStream,
)

Event = TextDelta | FinishedText
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TextJob:
    """Rows that are admitted but not yet submitted; `copies` rows in a row share a prompt."""

    service: TextService
    requests: Sequence[TextRowRequest]
    copies: int
    deadline: float
    """On the event loop's clock."""

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[tuple[int, Event]]]:
        """Submit the rows and give their events, each with its row's index, as they come.

        Raises what `Service.submit` and the rows raise, the first error ending all rows, and
        RequestTimeout at the deadline. Leaving the context, however, cancels what still runs.
        """
        rows = self.service.submit(self.requests)
        merged: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()
        pumps = [asyncio.create_task(_pump(i, row, merged)) for i, row in enumerate(rows)]
        timer = asyncio.timeout_at(self.deadline)
        try:
            async with timer:
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


async def _pump(index: int, row: TokenStream, merged: asyncio.Queue[Any]) -> None:
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
    """A finished row, put together."""

    finished: FinishedText
    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)


async def collect(generation: TextJob) -> list[CollectedText]:
    """All rows of `generation`, in order, when the last has finished."""
    texts: list[list[str]] = [[] for _ in generation.requests]
    tokens: list[list[TokenLogprob]] = [[] for _ in generation.requests]
    finished: dict[int, FinishedText] = {}
    async with generation.events() as events:
        async for index, event in events:
            if isinstance(event, FinishedText):
                finished[index] = event
            else:
                texts[index].append(event.text)
                tokens[index].extend(event.tokens)
    return [CollectedText(finished[i], "".join(texts[i]), tokens[i]) for i in range(len(texts))]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one HTTP request; a prompt shared by several choices counts once."""

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
    """The result of `work`, or ClientGone and `work` cancelled where the client hangs up first.

    The request's body must have been read: what is received after it is the hang-up.
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
