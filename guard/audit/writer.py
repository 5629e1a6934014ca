"""A bounded queue with a thread that writes what is in it, off the path of requests."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

RETRY_S = 1.0
"""Until what could not be written is tried again."""
FLUSH_S = 0.1
"""Lines gather for this long: half of what a crash may lose, the rest is for a busy machine."""
MOST_QUEUED = 10_000


class QueuedWriter(Generic[T]):
    """Calls `write` with all items that have gathered, in their order, from one thread.

    `write` must not raise. It gives back the items that it could not write now: they come first
    when it is called again, RETRY_S later. Its second argument says that this is the last call,
    after which nothing is tried again. After `idle_s` without an item `idle` is called once. The
    thread starts with the first item, so that a process may fork before. All methods are for any
    thread.
    """

    def __init__(
        self,
        write: Callable[[list[T], bool], list[T]],
        idle: Callable[[], None],
        *,
        idle_s: float,
        most: int = MOST_QUEUED,
    ) -> None:
        self._write, self._idle, self._idle_s, self._most = write, idle, idle_s, most
        self._queue: deque[T] = deque()
        self._taken = 0
        """Items of the running, or the last, call that may come back."""
        self._lock = threading.Lock()
        self._some, self._hurry = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, item: T) -> None:
        """Queue an item. Raises OSError where there is no room, or after `close`."""
        with self._lock:
            if self._closed:
                raise OSError("the audit log is closed")
            if len(self._queue) + self._taken >= self._most:
                raise OSError(f"{self._most} lines wait for the audit log's disk")
            self._queue.append(item)
            is_first = len(self._queue) == 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="audit log", daemon=True)
                self._thread.start()
        if is_first:
            self._some.set()

    def hurry(self) -> None:
        """Write what is queued without waiting for more."""
        self._hurry.set()

    def close(self) -> None:
        """Write what is queued and end the thread; closing twice is allowed."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        self._some.set()
        self._hurry.set()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        has_idled, has_kept = True, False
        while True:
            if has_kept:
                self._hurry.wait(RETRY_S)
            elif self._some.wait(None if has_idled else self._idle_s):
                self._hurry.wait(FLUSH_S)
            else:
                self._idle()
                has_idled = True
                continue
            with self._lock:
                items, is_over = list(self._queue), self._closed
                self._taken = len(items)
                self._queue.clear()
                self._some.clear()
                self._hurry.clear()
            kept = self._write(items, is_over) if items else []
            has_idled, has_kept = has_idled and not items, bool(kept)
            with self._lock:
                self._taken = 0
                self._queue.extendleft(reversed(kept))
            if is_over:
                return
