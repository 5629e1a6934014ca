"""An audit log, or a part of it, as JSON lines, as a Parquet file, or to a syslog server."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from guard.audit.chain import encode, is_of, parse
from guard.audit.files import read_lines
from guard.errors import DataError, GuardError

_COLUMNS = ("time", "event", "tenant", "request_id", "model", "policy", "outcome")
_ROWS = 10_000
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Filter:
    """The lines that are wanted; None asks for no such thing. `since` is in, `until` is not; a
    tenant's teams are its own."""

    since: datetime | None = None
    until: datetime | None = None
    tenant: str | None = None
    policy: str | None = None
    outcome: str | None = None

    def takes(self, entry: Mapping[str, Any]) -> bool:
        """Whether a line is wanted."""
        if self.tenant is not None and not is_of(entry.get("tenant"), self.tenant):
            return False
        named = {"policy": self.policy, "outcome": self.outcome}
        if any(value is not None and entry.get(name) != value for name, value in named.items()):
            return False
        if self.since is None and self.until is None:
            return True
        try:
            time = utc(str(entry.get("time")))
        except ValueError:
            return False
        return (self.since is None or time >= self.since) and (
            self.until is None or time < self.until
        )


def utc(text: str) -> datetime:
    """A time or a date in ISO 8601; without a zone it is of UTC. Raises ValueError."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def entries(paths: Sequence[Path], wanted: Filter) -> Iterator[dict[str, Any]]:
    """The wanted lines of files; what is no line is passed over. Raises DataError."""
    for path in paths:
        for line in read_lines(path):
            entry = parse(line)
            if entry is not None and wanted.takes(entry):
                yield entry


def to_jsonl(lines: Iterable[Mapping[str, Any]], target: BinaryIO) -> int:
    """Write lines as they are; returns how many."""
    count = 0
    for count, line in enumerate(lines, 1):  # noqa: B007
        target.write(encode(line))
    return count


def to_parquet(lines: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write a table: a column for each of `_COLUMNS` and `elapsed_ms`, `seq`, and `line` with all
    of it as JSON; returns the number of rows. Raises GuardError."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise GuardError("Parquet needs pyarrow: pip install pyarrow") from error
    schema = pa.schema(
        [
            *((name, pa.string()) for name in _COLUMNS),
            ("elapsed_ms", pa.float64()),
            ("seq", pa.int64()),
            ("line", pa.string()),
        ]
    )
    count, rows = 0, list[dict[str, Any]]()
    try:
        with pq.ParquetWriter(path, schema) as writer:
            for line in lines:
                rows.append(_row(line))
                count += 1
                if len(rows) == _ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows.clear()
            writer.write_table(pa.Table.from_pylist(rows, schema))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}") from error
    return count


def to_syslog(lines: Iterable[Mapping[str, Any]], address: str) -> int:
    """Send each line as a message of RFC 5424, facility local0, to `udp://HOST:PORT`,
    `tcp://HOST:PORT` (a newline ends a message) or `unix:///PATH`; returns how many.

    Raises DataError where the server cannot be reached or breaks off.
    """
    target, kind = _address(address)
    count = 0
    try:
        handler = _Syslog(target, kind)
        try:
            for count, line in enumerate(lines, 1):  # noqa: B007
                handler.emit(_record(line))
        finally:
            handler.close()
    except OSError as error:
        raise DataError(f"{address}: {error.strerror or error}, after {count} lines") from error
    return count


class _Syslog(SysLogHandler):
    """The standard library's handler with the header of RFC 5424, which tells of failures."""

    append_nul = False

    def __init__(self, target: str | tuple[str, int], kind: socket.SocketKind) -> None:
        self._ending = "\n" if kind is socket.SOCK_STREAM else ""
        self._host = _word(socket.gethostname())
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_TIMEOUT_S)
        try:
            super().__init__(target, SysLogHandler.LOG_LOCAL0, kind)
        finally:
            socket.setdefaulttimeout(before)

    def format(self, record: logging.LogRecord) -> str:
        time = _word(record.__dict__["time"])
        return (
            f"1 {time} {self._host} inference-guard {os.getpid()} audit - "
            f"{record.getMessage()}{self._ending}"
        )

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # noqa: PLE0704  (called inside the handler's except)


def _record(line: Mapping[str, Any]) -> logging.LogRecord:
    text = encode(line).decode().rstrip("\n")
    record = logging.LogRecord("audit", logging.INFO, "", 0, text, None, None)
    record.__dict__["time"] = str(line.get("time") or "-")
    return record


def _word(text: str) -> str:
    """A field of the header: printable ASCII without spaces."""
    return "".join(c for c in text if "!" <= c <= "~")[:255] or "-"


def _address(text: str) -> tuple[str | tuple[str, int], socket.SocketKind]:
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        url, host, port = urlsplit(""), None, None
    kind = socket.SOCK_STREAM if url.scheme == "tcp" else socket.SOCK_DGRAM
    if url.scheme in ("udp", "tcp") and host and port:
        return (host, port), kind
    if url.scheme == "unix" and url.path and not host:
        return url.path, kind
    raise DataError(
        f"{text}: is no address of a syslog server: give udp://HOST:PORT, tcp://HOST:PORT or "
        "unix:///PATH"
    )


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: line[name] for name in _COLUMNS if isinstance(line.get(name), str)}
    elapsed, seq = line.get("elapsed_ms"), line.get("seq")
    return texts | {
        "elapsed_ms": float(elapsed) if isinstance(elapsed, int | float) else None,
        "seq": seq if isinstance(seq, int) else None,
        "line": encode(line).decode().rstrip("\n"),
    }
