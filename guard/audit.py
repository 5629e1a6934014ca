"""The audit log: one JSON line for each finished request, appended and never rewritten.

A line has the tenant, the policy and the guards' verdicts; no prompt, no answer, no key. Lines of
another kind, with an `event`, say that an erasure has another state, or that tenants have changed.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from guard.errors import GuardError
from guard.verdict import Verdict

MAX_CHARS = 512
"""Characters of a text in a line: a model's name is what a client says."""


def _now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """An append-only file of JSON lines, for several threads and processes.

    Each line is written at once, under a lock of all processes, so that a crash loses no finished
    request and lines are never mixed. A line that the disk has no room for is taken back as a
    whole. Raises GuardError if the file cannot be opened.
    """

    def __init__(self, path: Path, now: Callable[[], datetime] = _now) -> None:
        self.path = path
        self._now = now
        self._lock = threading.Lock()
        self._file: int | None = self._open()

    def append(self, verdict: Verdict, *, tenant: str) -> None:
        """Write the line of one finished request. Raises OSError (a full disk, a closed log)."""
        self._append({"tenant": tenant} | verdict.as_dict())

    def append_event(self, event: str, **facts: str) -> None:
        """Write a line that is of no request. Raises OSError, as `append`."""
        self._append({"event": event, **facts})

    def _append(self, facts: Mapping[str, Any]) -> None:
        time = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = {"time": time} | _plain(dict(facts))
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False) + "\n"
        with self._lock:
            if self._file is None:
                raise OSError(f"audit log {self.path} is closed")
            with _locked(self._file):
                _write_line(self._file, line.encode())

    def reopen(self) -> None:
        """Continue in the file that is now at the path, after log rotation. Raises GuardError."""
        with self._lock:
            reopened = self._open()
            if self._file is not None:
                os.close(self._file)
            self._file = reopened

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
            self._file = None

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
        except OSError as error:
            raise GuardError(f"audit log {self.path} cannot be opened: {error.strerror}") from error
        return file


@contextmanager
def _locked(file: int) -> Iterator[None]:
    """Lock the file against other processes, whose incomplete lines would look like a crash's."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _write_line(file: int, line: bytes) -> None:
    """Write a line or nothing, under the lock of all processes. Raises OSError."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        line = b"\n" + line  # a crash of the machine left half a line
    try:
        left = line[os.write(file, line) :]
        # for what the disk has no room for, the system says why at the next byte
        if left and os.write(file, left) < len(left):
            raise OSError("the audit log took half a line")
    except OSError:
        with suppress(OSError):
            os.ftruncate(file, size)
        raise


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
