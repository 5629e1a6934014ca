"""The batch of one model: a thread that owns the engine, and rows that join and leave it.

Shared by text and images: the queue, joining the batch between two steps, cancellation, a step that
fails, the end of a row with its verdict, the end of the service.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from guard.errors import GuardError, GuardFailed, ServiceStopped, TooManyRequests
from guard.plans.base import Plan
from guard.verdict import Verdict
from server.errors import EngineFailed
from server.services.interface import AnyRequest

logger = logging.getLogger(__name__)

CLOSE_S = 30.0
"""How long `close` waits for the step under way; a device that hangs must not hang the server."""


class BatchRow(ABC):
    """The state of one request: written by the engine's thread, read by the event loop."""

    request: AnyRequest
    plan: Plan[Any]

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.arrived = time.monotonic()
        self.readings: Mapping[str, Any] = {}
        """The readings of the row's guards, by the guard's name."""
        self.error: GuardError | None = None
        self.cancelled = self.ended = False
        self._loop = loop
        self._events: asyncio.Queue[Any] = asyncio.Queue()

    @property
    @abstractmethod
    def over(self) -> bool:
        """Whether the engine has no more work for the row."""

    @abstractmethod
    def finish(self, verdict: Verdict) -> None:
        """Send the last event, with the verdict or with the error that ended the row."""

    def send_error(self, error: GuardError, verdict: Verdict) -> None:
        """Send the error as the last event; a GuardFailed carries the verdict."""
        if isinstance(error, GuardFailed):
            error.verdict = verdict
        self.send(error)

    async def next_event(self) -> Any:
        return await self._events.get()

    def send(self, event: Any) -> None:
        with suppress(RuntimeError):  # the event loop is closed: there is no reader
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class RowEngine(Protocol):
    """The part of an engine that the loop uses. Rows are dense; `drop` returns the rows that moved,
    as (source, target)."""

    @property
    def capacity(self) -> int: ...

    @property
    def rows(self) -> int: ...

    def drop(self, rows: Sequence[int]) -> list[tuple[int, int]]: ...

    def readings(self, row: int) -> Mapping[str, Any]: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


R = TypeVar("R", bound=BatchRow)
E = TypeVar("E", bound=RowEngine)


class EngineLoop(ABC, Generic[R, E]):
    """The queue and the running batch of one model. Built on any thread, used from one event loop.

    Subclasses start the rows (`_join`) and run one step (`_advance`).
    """

    def __init__(
        self, name: str, engine: E, *, queue_limit: int, record: Callable[[Any, Verdict], None]
    ) -> None:
        self._name = name
        self._engine = engine
        self._queue_limit = queue_limit
        self._record = record
        self._running: list[R] = []
        """Entry i is row i of the engine. Used by the engine's thread alone, as the next two."""
        self._entering: list[R] = []
        """Rows that have left the queue and become rows of the engine in a later step."""
        self._joined = False
        """Whether rows have joined in the current step, or in the last one between two steps."""
        self._wake = threading.Condition()
        # under _wake:
        self._waiting: deque[R] = deque()
        self._open: set[R] = set()
        """All rows that were admitted and have not ended."""
        self._changes: deque[tuple[Future[None], Callable[[], None]]] = deque()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)

    # -- for subclasses, on the engine's thread --------------------------------------------------

    @abstractmethod
    def _join(self, joining: list[R]) -> None:
        """Start these rows in the engine and append them to `_running` or `_entering`."""

    @abstractmethod
    def _advance(self) -> None:
        """Run one step of the engine and pass its results to the rows of `_running`."""

    def _choose(self, waiting: Iterable[R], free: int) -> list[R]:
        """Which of the `waiting` rows, in the order of their arrival, join in the next step: `free`
        at most, and at least one where nothing else runs. Called under the lock."""
        return list(islice(waiting, free))

    def _settle(self) -> None:
        """Called before each step."""

    def _served_as(self, row: R) -> str:
        """The name under which the row's request has asked for the model."""
        return self._name

    def _keep_readings(self, index: int) -> None:
        """Copy the readings of row `index` from the engine, which the row is about to leave."""
        self._running[index].readings = self._engine.readings(index)

    # -- called from the event loop -------------------------------------------------------------

    def _enqueue(self, rows: Sequence[R]) -> None:
        """Queue these rows, all or none; rows whose plan refuses requests end at once.

        Raises GuardFailed, TooManyRequests, ServiceStopped.
        """
        for row in rows:
            if row.plan.refuses:
                self._fail(row, guard_failed())
        if refused := [row.error for row in rows if row.error]:
            raise refused[0]
        with self._wake:
            if self._stopped:
                raise ServiceStopped("the server is stopping: try again in a moment")
            if len(self._open) + len(rows) > self._queue_limit + self._engine.capacity:
                raise queue_full(len(self._waiting), self._engine.capacity)
            self._waiting.extend(rows)
            self._open.update(rows)
            self._wake.notify()

    def _between_steps(self, change: Callable[[], None]) -> Future[None]:
        """Have the engine's thread call `change` before its next step; from any thread. The future
        has what it raises, and ServiceStopped."""
        done: Future[None] = Future()
        with self._wake:
            if self._stopped:
                done.set_exception(stopped())
            else:
                self._changes.append((done, change))
                self._wake.notify()
        return done

    def ready(self) -> bool:
        return not self._stopped

    def queued(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            logger.error("model %s did not end its step within %g s", self._name, CLOSE_S)
        else:
            self._engine.close()

    def _cancel(self, row: R) -> None:
        with self._wake:
            row.cancelled = True
            if queued := row in self._waiting:
                self._waiting.remove(row)
            self._wake.notify()
        if queued:
            self._end(row)

    # -- the engine's thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (joining := self._next_rows()) is not None:
                self._change()
                self._step(joining)
            for index, row in enumerate(self._running):
                self._keep_readings(index)
                self._fail(row, stopped())
        except Exception:
            logger.exception("the engine of model %s has stopped", self._name)
        finally:
            with self._wake:
                self._stopped = True
                left = [*self._running, *self._entering, *self._waiting]
                self._waiting.clear()
                changes = [*self._changes]
                self._changes.clear()
            for done, _ in changes:
                if done.set_running_or_notify_cancel():
                    done.set_exception(stopped())
            for row in left:
                if not row.ended:
                    self._fail(row, stopped())
            self._running, self._entering = [], []

    def _next_rows(self) -> list[R] | None:
        """Wait for work; the rows that join the batch now, None when the service stops."""
        with self._wake:
            while not (self._waiting or self._busy() or self._changes or self._stopped):
                self._wake.wait()
            if self._stopped:
                return None
            free = self._engine.capacity - len(self._running) - len(self._entering)
            joining = self._choose(self._waiting, free)
            for row in joining:
                self._waiting.remove(row)
        return joining

    def _change(self) -> None:
        """Make the changes that wait; who asked for one learns of its failure."""
        while self._changes:
            done, change = self._changes.popleft()
            if not done.set_running_or_notify_cancel():
                continue  # who asked for it is gone
            try:
                change()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def _busy(self) -> bool:
        return bool(self._running or self._entering)

    def _step(self, joining: list[R]) -> None:
        """Run one step. An error in it fails the rows of the batch; the service goes on."""
        try:
            self._leave([i for i, row in enumerate(self._running) if row.cancelled])
            self._settle()
            self._joined = bool(joining)
            if joining:
                self._join(joining)
            if self._busy():
                self._advance()
        except Exception:
            logger.exception("a step of model %s failed", self._name)
            lost = dict.fromkeys([*self._running, *self._entering, *joining])
            self._running, self._entering = [], []
            for row in lost:
                if not row.ended:
                    self._fail(row, engine_failed())
            self._engine.reset()

    def _leave(self, indices: Sequence[int]) -> None:
        """End these rows and remove them from the batch."""
        for index in indices:
            self._keep_readings(index)
            self._end(self._running[index])
        self._drop(indices)

    def _drop(self, indices: Sequence[int]) -> None:
        for source, target in self._engine.drop(indices):
            self._running[target] = self._running[source]
        del self._running[self._engine.rows :]

    # -- the end of a row, on either thread -----------------------------------------------------

    def _fail(self, row: R, error: GuardError) -> None:
        row.error = error
        self._end(row)

    def _end(self, row: R) -> None:
        row.ended = True
        verdict = row.plan.verdict(
            row.readings,
            request_id=row.request.request_id,
            model=self._served_as(row),
            elapsed_ms=(time.monotonic() - row.arrived) * 1000,
        )
        with self._wake:
            self._open.discard(row)
        settle(row, verdict, self._record)


def settle(row: BatchRow, verdict: Verdict, record: Callable[[Any, Verdict], None]) -> None:
    """Pass the one verdict of a row that has ended to `record`, then to the row's reader."""
    if row.error is not None:
        verdict = replace(verdict, outcome="error")
    try:
        record(row.request, verdict)
    except Exception:  # the client gets its answer all the same
        logger.exception("no record of request %s", row.request.request_id)
    row.finish(verdict)


def queue_full(waiting: int, capacity: int) -> TooManyRequests:
    return TooManyRequests(
        f"{waiting} requests are waiting already: try again later",
        retry_after=1.0 + waiting / capacity,
    )


def guard_failed() -> GuardFailed:
    return GuardFailed("a guard of this policy could not be applied; its policy fails closed")


def engine_failed() -> EngineFailed:
    return EngineFailed("the engine failed while it ran this request; the server's log has why")


def stopped() -> ServiceStopped:
    return ServiceStopped("the server stopped before the answer was complete")
