"""Lines of an audit log that wait to be written, in a file that outlives a killed process.

The file is mapped into memory: a line is copied there without a system call, and the pages are the
system's, not the process's. Whoever opens the log next writes what a killed process has left; each
line is sealed by the log's key, so that nobody else can have lines written. The file has two
halves: while the lines of one are written, new ones go to the other.
"""

from __future__ import annotations

import fcntl
import hmac
import logging
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

HALF_BYTES = 2**22
"""Some five thousand lines; what does not fit waits in the process's memory alone."""
_TURN_BYTES = 2**16
"""A half with so much in it lets the other have a turn, once that is empty."""
_HEAD = struct.Struct("<I32s")
"""The length of a line, and its seal."""
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

    def done(self) -> None:
        self.waiting -= 1
        if not self.waiting:
            # no copy of personal fields stays behind
            self.memory[: self.used] = bytes(self.used)
            self.used = 0


class Journal:
    """The journal of one process beside the log at `path`, made with its first line. For any
    thread. Where it cannot be made, the log says so once, and lines wait in memory alone."""

    def __init__(self, path: Path, seal: Seal) -> None:
        self._path, self._seal = path, seal
        self._lock = threading.Lock()
        self._halves: list[Half] = []
        self._file: Path | None = None
        self._descriptor = self._process = -1

    def put(self, line: bytes) -> Half | None:
        """Keep a line until it is `done`; gives its place, or None where there is no room."""
        with self._lock:
            if self._process != os.getpid():  # a process that was forked has a journal of its own
                self._process = os.getpid()
                self._open()
            if self._file is None:
                return None
            active, other = self._halves
            if active.used > _TURN_BYTES and not other.used:
                self._halves.reverse()
                active = other
            seal = self._seal(self._file.name.encode() + line)
            return active if active.put(line, seal) else None

    def done(self, place: Half | None) -> None:
        """The line at `place` is written, or given up."""
        if place is not None:
            with self._lock:
                place.done()

    def close(self) -> None:
        """Delete the file: nothing waits any more, and nothing is kept from now on."""
        with self._lock:
            if self._file is not None and self._process == os.getpid():
                with suppress(OSError):
                    self._file.unlink()
                os.close(self._descriptor)
            self._halves, self._file, self._process = [], None, os.getpid()

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
                mapped = memoryview(mmap.mmap(descriptor, 2 * HALF_BYTES))
                fresh.rename(file)
            except OSError:
                os.close(descriptor)
                fresh.unlink(missing_ok=True)
                raise
        except OSError as error:
            logger.warning("the audit log has no journal, so a kill loses lines: %s", error)
            return
        self._file, self._descriptor = file, descriptor
        self._halves = [Half(mapped[:HALF_BYTES]), Half(mapped[HALF_BYTES:])]


def left_by_killed(path: Path, seal: Seal) -> Iterator[tuple[Path, list[bytes]]]:
    """The journals beside the log at `path` whose processes are gone, and the lines in them. Each
    is locked until the next one is asked for."""
    for file in sorted(path.parent.glob(f"{path.name}.journal-*")):
        try:
            descriptor = os.open(file, os.O_RDWR)
        except OSError:
            continue  # another process has written it meanwhile
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.exists():
                data = os.pread(descriptor, 2 * HALF_BYTES, 0)
                name = file.name.encode()
                halves = (data[:HALF_BYTES], data[HALF_BYTES:])
                yield file, [line for half in halves for line in _lines(half, name, seal)]
        except BlockingIOError:
            pass  # its process lives
        finally:
            os.close(descriptor)


def _lines(half: bytes, name: bytes, seal: Seal) -> Iterator[bytes]:
    start = 0
    while start + _HEAD.size <= len(half):
        length, sealed = _HEAD.unpack_from(half, start)
        start += _HEAD.size
        line = half[start : start + length]
        if not length or not hmac.compare_digest(seal(name + line), sealed):
            return
        yield line
        start += length
