"""The file of an audit log: appended to under a lock of all processes, whole lines or nothing."""

from __future__ import annotations

import fcntl
import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from guard.errors import DataError, GuardError

MAX_LINE_BYTES = 2**20
_MODE = 0o640


def open_log(path: Path) -> int:
    """A descriptor that appends to `path`, which is made if missing. Raises GuardError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, _MODE)
    except OSError as error:
        raise GuardError(f"audit log {path} cannot be opened: {error.strerror}") from error


@contextmanager
def locked(file: int) -> Iterator[None]:
    """Lock the file against other processes, whose incomplete lines would look like a crash's."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def write_lines(file: int, lines: bytes) -> None:
    """Write whole lines or nothing, under the lock of all processes. Raises OSError."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        lines = b"\n" + lines  # a crash of the machine left half a line
    try:
        left = lines[os.write(file, lines) :]
        # for what the disk has no room for, the system says why at the next byte
        if left and os.write(file, left) < len(left):
            raise OSError("the audit log took half a line")
    except OSError:
        with suppress(OSError):
            os.ftruncate(file, size)
        raise


def last_lines(file: int) -> tuple[bytes, int]:
    """The last whole line, b"" where there is none, and the bytes of half a line behind it."""
    size = os.fstat(file).st_size
    tail, start = b"", size
    while start and tail.count(b"\n") < 2 and len(tail) < 2 * MAX_LINE_BYTES:
        step = min(start, 2**16)
        start -= step
        tail = os.pread(file, step, start) + tail
    whole, newline, torn = tail.rpartition(b"\n")
    return whole.rpartition(b"\n")[2] + newline, len(torn)


def lines_at_end(file: int, most: int) -> list[bytes]:
    """The whole lines in the last `most` bytes."""
    size = os.fstat(file).st_size
    data = os.pread(file, most, max(0, size - most))
    lines = data.splitlines(keepends=True)[size > most :]
    return [line for line in lines if line.endswith(b"\n")]


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a log, of one that was packed by gzip too; a longer one than MAX_LINE_BYTES is
    cut. Raises DataError."""
    try:
        with cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            yield from iter(lambda: file.readline(MAX_LINE_BYTES), b"")
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}") from error
