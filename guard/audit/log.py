"""The audit log: one JSON line for each finished request, appended and never rewritten.

A line has the tenant, the policy and the guards' verdicts; no prompt, no answer, no key. Lines of
another kind, with an `event`, say that an erasure has another state, that tenants or policies have
changed, who has read a kept text, or what the log has to say of itself.
"""

from __future__ import annotations

import atexit
import errno
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from guard.audit.chain import LOST, encode
from guard.audit.chain_file import ChainFile
from guard.audit.files import locked, open_log, write_lines
from guard.audit.journal import Journal, Place, left_by_killed
from guard.audit.signing import Signer
from guard.audit.writer import MOST_QUEUED, QueuedWriter
from guard.errors import GuardError
from guard.verdict import Shadow, Verdict

logger = logging.getLogger(__name__)

MAX_CHARS = 512
"""Characters of a text in a line: a model's name is what a client says."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
IDLE_S = 10.0
"""The last lines are signed after this long without another."""


def _now() -> datetime:
    return datetime.now(UTC)


Lost = Callable[[OSError], None]
"""Told of each line that was accepted and then could not be written, from the writer's thread."""


class AuditLog:
    """An append-only file of JSON lines, for several threads and processes.

    Without a key each line is written at once, under a lock of all processes, so that a crash loses
    no finished request and lines are never mixed. With the file of an Ed25519 key, lines are
    chained and signed, and one thread writes them, after 100 ms on a machine with time to spare;
    until then they are in a journal. Whoever opens the log next writes what a process has left
    there: one that was killed, or that ended while the disk was full. Where the disk is full they
    wait until it has room, and those beyond MOST_QUEUED are lost. A line that the disk has no room
    for is taken back as a whole. Raises GuardError if a file cannot be opened.
    """

    def __init__(
        self, path: Path, now: Callable[[], datetime] = _now, *, key: Path | None = None
    ) -> None:
        self.path = path
        self._sink: _Chained | _Plain = (
            _Plain(path) if key is None else _Chained(path, Signer(key), lambda: _stamp(now()))
        )
        self._now = now

    def append(self, verdict: Verdict, *, tenant: str, shadow: Shadow | None = None) -> None:
        """Write the line of one finished request, or queue it where lines are chained; `shadow` is
        what the shadow of its policy says. Raises OSError (a full disk or queue, a closed log)."""
        facts: dict[str, Any] = {"tenant": tenant}
        if shadow is not None:
            facts["shadow"] = shadow
        self._sink.append(_Entry(self._now(), facts, verdict))

    def append_event(self, event: str, **facts: str) -> None:
        """Write a line that is of no request. Raises OSError, as `append`."""
        self._sink.append_now(_Entry(self._now(), {"event": event, **facts}))

    @property
    def is_queued(self) -> bool:
        """Whether `append` queues lines, so that only `tell` says whether they are written."""
        return isinstance(self._sink, _Chained)

    def tell(self, lost: Lost, written: Callable[[], None]) -> None:
        """Call `lost` for each queued line of a request that the disk refuses, and `written` after
        lines that it takes."""
        if isinstance(self._sink, _Chained):
            self._sink.lost, self._sink.written = lost, written

    def reopen(self) -> None:
        """Continue in the file that is now at the path, after log rotation. Raises GuardError."""
        self._sink.reopen()

    def close(self) -> None:
        """Write what is queued and close the file; closing twice is allowed."""
        self._sink.close()

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(slots=True)
class _Entry:
    """A line before it is spelled. `written` is set once it is written or lost with `error`;
    `place` is where the journal has it."""

    time: datetime
    facts: Mapping[str, Any]
    verdict: Verdict | None = None
    written: threading.Event | None = None
    error: OSError | None = None
    place: Place | None = None
    _members: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        if self._members is None:
            body = {} if self.verdict is None else self.verdict.as_dict()
            plain: dict[str, Any] = _plain({**self.facts, **body})
            self._members = {"time": _stamp(self.time)} | plain
        return self._members


class _Plain:
    """Lines that are written as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file: int | None = open_log(path)

    def append(self, entry: _Entry) -> None:
        line = encode(entry.as_dict())
        with self._lock:
            if self._file is None:
                raise OSError(f"audit log {self._path} is closed")
            with locked(self._file):
                write_lines(self._file, line)

    append_now = append

    def reopen(self) -> None:
        with self._lock:
            reopened = open_log(self._path)
            if self._file is not None:
                os.close(self._file)
            self._file = reopened

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                os.close(self._file)
            self._file = None


class _Chained:
    """Lines that are queued, and then linked and signed."""

    def __init__(self, path: Path, signer: Signer, now: Callable[[], str]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._file: ChainFile | None = ChainFile(path, signer, now)
        for journal, lines in left_by_killed(path, signer.seal):
            self._recover(self._file, journal, lines)
        self._journal = Journal(path, signer.seal)
        self._lost = 0
        self._is_full = False
        self._queue = QueuedWriter[_Entry](self._write, self._sign, idle_s=IDLE_S)
        self.lost: Lost = lambda error: None
        self.written: Callable[[], None] = lambda: None
        # a process that is ended without closing its log, as vLLM's, loses no queued line
        atexit.register(self.close)

    def append(self, entry: _Entry) -> None:
        with suppress(Exception):  # a line that cannot be spelled is refused when it is written
            entry.place = self._journal.put(encode(entry.as_dict()))
        try:
            self._queue.put(entry)
        except OSError:
            self._journal.done(entry.place)
            with self._lock:
                self._lost += 1
            raise

    def append_now(self, entry: _Entry) -> None:
        entry.written = threading.Event()
        self._queue.put(entry)
        self._queue.hurry()
        entry.written.wait()
        if entry.error is not None:
            raise entry.error

    def reopen(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.reopen()

    def close(self) -> None:
        self._queue.close()
        with self._lock:
            if self._file is not None:
                try:
                    if self._lost:
                        self._file.write([self._losses()])
                    self._file.close()
                except (OSError, GuardError) as error:
                    logger.error("the audit log has no last checkpoint: %s", error)
            self._file = None
        self._journal.close()
        atexit.unregister(self.close)

    def _recover(self, file: ChainFile, journal: Path, lines: list[bytes]) -> None:
        """Write what a killed process has left in its journal."""
        try:
            if lines:
                file.recover(lines)
            journal.unlink()
        except (OSError, GuardError) as error:
            logger.error("lines of a killed process stay in %s: %s", journal, error)

    def _write(self, entries: list[_Entry], is_last: bool) -> list[_Entry]:
        kept, done = list[_Entry](), 0
        try:
            if self._is_full:  # one line says whether there is room again
                self._put(entries[:1])
                self._note_full(False)
                done = 1
            self._put(entries[done:])
        except Exception:
            # as many as there is room for; no line, whatever is wrong with it, may stop the thread
            kept = self._put_apart(entries[done:], is_last)
        waiting = set(map(id, kept))
        for entry in entries:
            if id(entry) not in waiting:
                self._journal.done(entry.place)
            if entry.written is not None:
                entry.written.set()
        return kept

    def _put_apart(self, entries: list[_Entry], is_last: bool) -> list[_Entry]:
        """Write entry by entry; gives those that wait until the disk has room: not those that
        somebody waits for, and the last time those that the journal has."""
        for number, entry in enumerate(entries):
            try:
                self._put([entry])
            except Exception as error:
                if not (isinstance(error, OSError) and error.errno in _FULL):
                    self._refuse(entry, error)
                    continue
                self._note_full(True)
                kept = []
                for rest in entries[number:]:
                    if rest.written is None and (rest.place is not None or not is_last):
                        kept.append(rest)
                    else:
                        self._refuse(rest, error)
                return kept
        return []

    def _note_full(self, is_full: bool) -> None:
        if is_full and not self._is_full:
            logger.error("the audit log's disk is full: lines wait, %d at most", MOST_QUEUED)
        elif self._is_full and not is_full:
            logger.error("the audit log's disk has room again")
        self._is_full = is_full

    def _put(self, entries: list[_Entry]) -> None:
        lines = [entry.as_dict() for entry in entries]
        with self._lock:
            if self._file is None:
                raise OSError("the audit log is closed")
            lost = self._lost
            if lost:
                lines.append(self._losses())
            try:
                self._file.write(lines)
            except GuardError as error:
                raise OSError(error.message) from error
            self._lost -= lost
        self.written()

    def _losses(self) -> dict[str, Any]:
        return {"time": self._now(), "event": LOST, "lines": self._lost}

    def _refuse(self, entry: _Entry, error: Exception) -> None:
        with self._lock:
            self._lost += 1
        entry.error = error if isinstance(error, OSError) else OSError(str(error))
        if entry.written is None:
            self.lost(entry.error)

    def _sign(self) -> None:
        with self._lock, suppress(OSError, GuardError):
            if self._file is not None and self._file.unsigned:
                self._file.checkpoint("time")


def _stamp(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    """`value` with null for NaN and infinity, which JSON does not have, and names that clients give
    cut to MAX_CHARS, without halves of surrogate pairs."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        value = value[:MAX_CHARS]
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
