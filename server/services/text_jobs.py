"""The rows of one HTTP request for text: merged, timed, cancelled when the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.types import Receive

from server.errors import ClientGone, RequestTimeout
from server.services.interface import (
    Event,
    FinishedText,
    RowEvents,
    TextDelta,
    TextRowRequest,
    TextService,
    TokenLogprob,
)
from server.services.token_gates import TokenGate
from server.services.tools.parser import CallDelta
from server.services.tools.row_calls import RowCalls

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
    calls_of: Callable[[], RowCalls] | None = None
    """Makes the reader of calls of one row; None where the request offers no tools."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each counted once."""
        return sum(len(request.prompt) for request in self.requests[:: self.copies])

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
                events = _drain(merged, len(rows))
                if self.calls_of is not None:
                    events = _with_calls(events, rows, self.calls_of)
                yield events
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


async def _with_calls(
    events: AsyncIterator[tuple[int, Event]],
    rows: Sequence[RowEvents],
    calls_of: Callable[[], RowCalls],
) -> AsyncGenerator[tuple[int, Event]]:
    readers = [calls_of() for _ in rows]
    async for index, event in events:
        reader = readers[index]
        for read in reader.read(event):
            yield index, read
        if reader.is_over and not isinstance(event, FinishedText):
            rows[index].end()


@dataclass(slots=True)
class Call:
    """A call of a tool, whose `arguments` are JSON text."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class CollectedText:
    """A finished row, its events collected; `calls` are those that are whole."""

    finished: FinishedText
    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    gates: list[TokenGate] = field(default_factory=list)


class _Collector:
    """Collects the events of one row."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._tokens: list[TokenLogprob] = []
        self._gates: list[TokenGate] = []
        self._calls: dict[int, Call] = {}
        self._finished: FinishedText | None = None
        self._is_said = False

    def add(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self._texts.append(event.text)
            self._tokens.extend(event.tokens)
            self._gates.extend(event.gates)
            self._is_said |= event.said
        elif isinstance(event, CallDelta):
            if event.id is not None and event.name is not None:
                self._calls[event.number] = Call(event.id, event.name)
            self._calls[event.number].arguments += event.arguments
        elif isinstance(event, FinishedText):
            self._finished = event
        elif event.broken is not None:
            del self._calls[event.number]
            self._texts.append(event.broken)

    def collected(self) -> CollectedText:
        assert self._finished is not None
        # a filter, or the policy's message, ends the whole answer: nothing is to be carried out
        is_cut = self._is_said or self._finished.reason == "content_filter"
        calls = [] if is_cut else [*self._calls.values()]
        text = "".join(self._texts)
        return CollectedText(self._finished, text, self._tokens, calls, self._gates)


async def collect(job: TextJob) -> list[CollectedText]:
    """All rows of `job`, in order, when the last one has finished. Raises as `TextJob.events`."""
    rows = [_Collector() for _ in job.requests]
    async with job.events() as events:
        async for index, event in events:
            rows[index].add(event)
    return [row.collected() for row in rows]


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
