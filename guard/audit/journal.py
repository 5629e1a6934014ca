"""Lines of an audit log that wait to be written, in a file that outlives a killed process.

The file is mapped into memory: a line is copied there without a system call, and the pages are the
system's, not the process's. Whoever opens the log next writes what a process has left; each
line is sealed by the log's key, so that nobody else can have lines written. The file has two
halves: while the lines of one are written, new ones go to the other.
"""

from __future__ import annotations

import fcntl
import glob
import hmac
import logging
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

HALF_BYTES = 2**22
"""Some five thousand lines; what does not fit waits in the process's memory alone."""
_TURN_BYTES = 2**16
"""A half with so much in it lets the other have a turn, once that is empty."""
_HEAD = struct.Struct("<I32s")
"""The length of a line, and its seal."""
_DONE = bytes(32)
"""In place of a seal: the line is written, and cleared here."""
_MODE = 0o600

Seal = Callable[[bytes], bytes]
"""The HMAC of a line behind the name of its journal."""


class Half:
    """One half: records behind each other, and a zero behind the last."""

    def __init__(self, memory: memoryview) -> None:
        self.memory, self.used, self.waiting = memory, 0, 0

    def put(self, line: bytes, seal: bytes) -> bool:
        end = self.used + _HEAD.size + len(line)
        if end + _HEAD.size > len(self.memory):
            return False
        # the head last: a record that a kill cuts short has none
        self.memory[self.used + _HEAD.size : end] = line
        _HEAD.pack_into(self.memory, self.used, len(line), seal)
        self.used, self.waiting = end, self.waiting + 1
        return True

    def done(self, start: int) -> None:
        length, _ = _HEAD.unpack_from(self.memory, start)
        # no copy of personal fields stays behind, and nothing that could be written once more
        _HEAD.pack_into(self.memory, start, length, _DONE)
        self.memory[start + _HEAD.size : start + _HEAD.size + length] = bytes(length)
        self.waiting -= 1
        if not self.waiting:
            self.memory[: self.used] = bytes(self.used)
            self.used = 0


class Place(NamedTuple):
    """Where a line waits: the first byte of its record in a half."""

    half: Half
    start: int


class Journal:
    """The journal of one process beside the log at `path`, made with its first line. For any
    thread. Where it cannot be made, the log says so once, and lines wait in memory alone."""

    def __init__(self, path: Path, seal: Seal) -> None:
        self._path, self._seal = path, seal
        self._lock = threading.Lock()
        self._halves: list[Half] = []
        self._file: Path | None = None
        self._descriptor, self._begun = -1, False
        with _forking:
            _journals.add(self)

    def put(self, line: bytes) -> Place | None:
        """Keep a line until it is `done`; gives its place, or None where there is no room."""
        with self._lock:
            if not self._begun:
                self._begun = True
                self._open()
            if self._file is None:
                return None
            active, other = self._halves
            if active.used > _TURN_BYTES and not other.used:
                self._halves.reverse()
                active = other
            seal = self._seal(self._file.name.encode() + line)
            place = Place(active, active.used)
            return place if active.put(line, seal) else None

    def done(self, place: Place | None) -> None:
        """The line at `place` is written, or given up."""
        with self._lock:
            if place is not None and place.half in self._halves:
                place.half.done(place.start)

    def close(self) -> None:
        """Delete the file, unless lines wait in it; nothing is kept from now on."""
        with self._lock:
            if self._file is not None:
                if any(half.waiting for half in self._halves):
                    logger.warning("lines of the audit log wait in %s", self._file)
                else:
                    with suppress(OSError):
                        self._file.unlink()
                self._let_go()
            self._begun = True

    def _let_go(self) -> None:
        """Leave the file to whoever comes next."""
        for half in self._halves:
            half.memory.release()
        self._map.close()  # it has a descriptor of its own, which holds the lock
        os.close(self._descriptor)
        self._halves, self._file = [], None

    def _forked(self) -> None:
        """In a child: a journal of its own, with its first line."""
        self._lock = threading.Lock()
        if self._file is not None:
            # the child would hold the lock for as long as it lives, after its parent is killed
            self._let_go()
        self._begun = False

    def _open(self) -> None:
        self._halves, self._file = [], None
        name = f"{self._path.name}.journal-{os.urandom(4).hex()}"
        file, fresh = self._path.with_name(name), self._path.with_name(f".{name}")
        try:
            descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE)
            try:
                # locked before it has its name, so that nobody takes it for a dead process's
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # written, since a page that the disk has no room for would kill the process
                if os.write(descriptor, bytes(2 * HALF_BYTES)) < 2 * HALF_BYTES:
                    raise OSError("the disk has no room for it")
                self._map = mmap.mmap(descriptor, 2 * HALF_BYTES)
                fresh.rename(file)
            except OSError:
                os.close(descriptor)
                fresh.unlink(missing_ok=True)
                raise
        except OSError as error:
            logger.warning("the audit log has no journal, so a kill loses lines: %s", error)
            return
        self._file, self._descriptor = file, descriptor
        with memoryview(self._map) as mapped:
            self._halves = [Half(mapped[:HALF_BYTES]), Half(mapped[HALF_BYTES:])]


_journals: weakref.WeakSet[Journal] = weakref.WeakSet()
_held: list[Journal] = []
_forking = threading.Lock()


def _before_fork() -> None:
    # no thread is in the middle of a record, whose memory the child could then not let go
    _forking.acquire()
    _held.extend(_journals)
    for journal in _held:
        journal._lock.acquire()


def _in_parent() -> None:
    while _held:
        _held.pop()._lock.release()
    _forking.release()


def _in_child() -> None:
    while _held:
        _held.pop()._forked()
    _forking.release()


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)


def left_by_killed(path: Path, seal: Seal) -> Iterator[tuple[Path, list[bytes]]]:
    """The journals beside the log at `path` whose processes are gone, and the lines in them. Each
    is locked until the next one is asked for. One that cannot be read, or that another key has
    sealed, stays where it is, and the log says so."""
    for file, halves in _of_killed(path):
        name = file.name.encode()
        lines = [line for half in halves for line in _lines(half, name, seal)]
        if not lines and any(_has_line(half) for half in halves):
            _tell_unread(file, "another key has sealed them, or the file is damaged")
        else:
            yield file, lines


def waiting(path: Path) -> list[Path]:
    """The journals of killed processes, beside the log at `path`, that may have lines."""
    return [file for file, halves in _of_killed(path) if any(map(_has_line, halves))]


def _of_killed(path: Path) -> Iterator[tuple[Path, tuple[bytes, bytes]]]:
    """The journals of dead processes and their halves; each is locked until the next one."""
    for file in sorted(path.parent.glob(f"{glob.escape(path.name)}.journal-*")):
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_NONBLOCK)
        except FileNotFoundError:
            continue  # another process has written it meanwhile
        except OSError as error:
            _tell_unread(file, error.strerror)
            continue
        try:
            if (halves := _read(descriptor, file)) is not None:
                yield file, halves
        finally:
            os.close(descriptor)


def _read(descriptor: int, file: Path) -> tuple[bytes, bytes] | None:
    """The halves of a dead process's journal, which is locked from now on; else None."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not file.exists():
            return None
        data = os.pread(descriptor, 2 * HALF_BYTES, 0)
    except BlockingIOError:
        return None  # its process lives
    except OSError as error:
        _tell_unread(file, error.strerror)
        return None
    return data[:HALF_BYTES], data[HALF_BYTES:]


def _tell_unread(file: Path, reason: str | None) -> None:
    logger.error("lines of a killed process stay in %s: %s", file, reason)


def _lines(half: bytes, name: bytes, seal: Seal) -> Iterator[bytes]:
    """The lines that are not done, to the first one that is not sealed with the key."""
    for sealed, line in _records(half):
        if not hmac.compare_digest(seal(name + line), sealed):
            return
        yield line


def _has_line(half: bytes) -> bool:
    """Whether a half has a line that is not done, whoever has sealed it."""
    return next(_records(half), None) is not None


def _records(half: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The seals and lines that are not done."""
    start = 0
    while start + _HEAD.size <= len(half):
        length, sealed = _HEAD.unpack_from(half, start)
        start += _HEAD.size
        if sealed != _DONE:
            yield sealed, half[start : start + length]
        elif not length:
            return
        start += length
