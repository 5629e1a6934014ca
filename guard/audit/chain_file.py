"""A file of chained lines, which several processes may append to.

All processes continue one chain: whoever holds the lock links its lines to the last one in the
file. A chain for each process would let the lines of a whole process be removed unseen. A file that
was moved away is sealed by its last line, `rotated`, so that every process goes on in the new one.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from guard.audit.chain import (
    BROKEN,
    CHECKPOINT,
    EVERY,
    RECOVERED,
    START,
    Head,
    digest,
    encode,
    head_of,
    link,
    parse,
    unlinked,
)
from guard.audit.files import (
    MAX_LINE_BYTES,
    last_lines,
    lines_at_end,
    locked,
    open_log,
    write_lines,
)
from guard.audit.signing import Signer
from guard.errors import GuardError

Reason = Literal["opened", "count", "time", "rotated", "closed"]
_ENDS = ("closed", "rotated")
_SIGN_EVERY_S = 60.0
"""A checkpoint ends the first lines that come this long after the last one."""
_RECENT_BYTES = 2**24
"""Where lines that a killed process wrote last are looked for."""
_TRIES = 8
"""Of finding the file at the path, while others move it."""


def checkpoint_path(path: Path) -> Path:
    """The file beside a log with its last checkpoint, which shows that its end was cut off."""
    return path.with_name(path.name + ".checkpoint")


class ChainFile:
    """The end of the chain at `path`. One thread at a time. Raises GuardError.

    `now` gives the time of lines that the file writes itself. A writer that crashed is noticed by
    the first one after it that is alone: each holds a shared lock while it is open.
    """

    def __init__(self, path: Path, signer: Signer, now: Callable[[], str]) -> None:
        self.path = path
        self._signer, self._now = signer, now
        self._file = open_log(path)
        try:
            self._side = os.open(checkpoint_path(path), os.O_RDWR | os.O_CREAT, 0o640)
        except OSError as error:
            os.close(self._file)
            raise GuardError(f"{checkpoint_path(path)} cannot be opened: {error.strerror}") from (
                error
            )
        self._writer = os.urandom(4).hex()
        self._opened = self._broken = False
        self._unsigned = False
        self._signed_at = time.monotonic()
        self._known: tuple[int, Head] | None = None
        """The size of the file after the last write, and the head there."""
        self._start()

    @property
    def unsigned(self) -> bool:
        """Whether the last line that this process wrote is behind the last checkpoint."""
        return self._unsigned

    def write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Link and append all entries, or none. Raises OSError."""
        with self._held():
            self._put(entries)

    def recover(self, lines: Sequence[bytes]) -> None:
        """Append those of a killed process's lines that it had not written, and one that counts
        them. Raises OSError."""
        with self._held():
            last = [parse(line) for line in lines_at_end(self._file, _RECENT_BYTES)]
            written = Counter(encode(unlinked(entry)) for entry in last if entry is not None)
            waiting = Counter(lines) - written
            entries = [entry for line in waiting.elements() if (entry := parse(line)) is not None]
            if entries:
                entries.sort(key=lambda entry: str(entry.get("time")))
                self._put([*entries, self._event(RECOVERED, lines=len(entries))])

    def checkpoint(self, reason: Reason) -> None:
        """Append a signed line, if this process has appended any. Raises OSError."""
        if self._opened:
            self.write([self._checkpoint(reason)])

    def reopen(self) -> None:
        """Go on in the file that is now at the path. Raises GuardError; the old one stays open."""
        os.close(open_log(self.path))
        try:
            with self._held():
                pass
        except OSError as error:
            raise GuardError(f"audit log {self.path} cannot be sealed: {error}") from error

    def close(self) -> None:
        """Close the file, with a last checkpoint. Raises OSError; the file is closed then too."""
        try:
            self.checkpoint("closed")
        finally:
            os.close(self._file)
            os.close(self._side)

    def _start(self) -> None:
        try:
            fcntl.flock(self._side, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        try:
            if alone:
                with self._held():
                    last, torn = self._last()
                    self._broken = bool(torn or _is_cut(last))
                    if self._broken:
                        self._put([])
        except OSError as error:
            os.close(self._file)
            os.close(self._side)
            raise GuardError(f"audit log {self.path} cannot be written: {error}") from error
        fcntl.flock(self._side, fcntl.LOCK_SH)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The lock on the file that all go on in."""
        for _ in range(_TRIES):
            with locked(self._file):
                if not self._has_moved():
                    yield
                    return
                self._seal()
                opened = open_log(self.path)
            os.close(self._file)
            self._file, self._known = opened, None
        raise OSError(f"audit log {self.path} is moved again and again")

    def _has_moved(self) -> bool:
        here = os.fstat(self._file)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            # between a rotation and its SIGHUP the old file is still the log, unless it is sealed
            return self._is_sealed()
        return not os.path.samestat(here, there)

    def _is_sealed(self) -> bool:
        entry = parse(last_lines(self._file)[0])
        return entry is not None and _reason(entry) == "rotated"

    def _seal(self) -> None:
        state = os.fstat(self._file)
        # an erasure has put another file in place of one without a name
        if state.st_nlink and state.st_size and not self._is_sealed():
            self._put([self._checkpoint("rotated")])

    def _last(self) -> tuple[bytes, int]:
        """The last line of the chain, b"" where none is known, and the bytes of half a line."""
        line, torn = last_lines(self._file)
        in_file, signed = head_of(line), os.pread(self._side, MAX_LINE_BYTES, 0)
        beside = head_of(signed)
        if beside is not None and (in_file is None or in_file.seq < beside.seq):
            return signed, torn  # the log is new, or was cut off
        return (line if in_file is not None else b""), torn

    def _put(self, entries: Sequence[Mapping[str, Any]]) -> None:
        size = os.fstat(self._file).st_size
        torn = 0
        if self._known is not None and self._known[0] == size:
            head = self._known[1]
        else:
            last, torn = self._last()
            head = head_of(last) or START
        own: list[Mapping[str, Any]] = []
        if torn or self._broken:
            own.append(self._event(BROKEN, known_to=head.seq, torn=torn))
        if not self._opened:
            own.append(self._checkpoint("opened"))
        lines: list[bytes] = []
        signed = -1
        is_late = time.monotonic() - self._signed_at >= _SIGN_EVERY_S
        if is_late and entries and entries[-1].get("event") != CHECKPOINT:
            entries = [*entries, self._checkpoint("time")]
        for entry in [*own, *entries]:
            parts = [entry]
            if (head.seq + 1) % EVERY == 0 and entry.get("event") != CHECKPOINT:
                parts.insert(0, self._checkpoint("count"))
            for part in parts:
                line = link(part, head)
                if part.get("event") == CHECKPOINT:
                    line, signed = self._signer.signed(line), len(lines)
                head = Head(line["seq"], digest(line))
                lines.append(encode(line))
        write_lines(self._file, b"".join(lines))
        self._opened, self._broken = True, False
        self._unsigned = signed < len(lines) - 1
        self._known = os.fstat(self._file).st_size, head
        if signed >= 0:
            self._signed_at = time.monotonic()
            with suppress(OSError):  # the log itself has the checkpoint
                os.pwrite(self._side, lines[signed], 0)
                os.ftruncate(self._side, len(lines[signed]))

    def _checkpoint(self, reason: Reason) -> dict[str, Any]:
        return self._event(CHECKPOINT, reason=reason, writer=self._writer)

    def _event(self, event: str, **facts: Any) -> dict[str, Any]:
        return {"time": self._now(), "event": event, **facts}


def _is_cut(line: bytes) -> bool:
    """Whether this is a chain's last line, and its writer has not ended it."""
    entry = parse(line)
    return entry is not None and _reason(entry) not in _ENDS


def _reason(entry: Mapping[str, Any]) -> object:
    return entry.get("reason") if entry.get("event") == CHECKPOINT else None
