from __future__ import annotations

import io
import json
import socket
import socketserver
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from guard.audit.export import Filter, entries, to_jsonl, to_parquet, to_syslog, utc
from guard.errors import DataError
from tests.guard.audit.logs import opened, verdict, write


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write(tmp_path, 3, tenant="acme")
    with opened(tmp_path) as log:
        log.append(verdict("b", "blocked"), tenant="other")
    return log.path


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Filter(), 8),
        (Filter(tenant="acme"), 3),
        (Filter(policy="strict"), 4),
        (Filter(outcome="blocked"), 1),
        (Filter(tenant="acme", outcome="blocked"), 0),
        (Filter(since=datetime(2000, 1, 1, tzinfo=UTC)), 8),
        (Filter(until=datetime(2000, 1, 1, tzinfo=UTC)), 0),
    ],
)
def test_lines_are_chosen(log: Path, wanted: Filter, found: int) -> None:
    target = io.BytesIO()
    assert to_jsonl(entries([log], wanted), target) == found
    assert target.getvalue().count(b"\n") == found


def test_until_is_not_in(log: Path) -> None:
    first = next(entries([log], Filter(tenant="acme")))["time"]
    assert not [*entries([log], Filter(tenant="acme", until=utc(first)))]
    assert len([*entries([log], Filter(tenant="acme", since=utc(first)))]) == 3


def test_a_table_has_the_columns_and_all_of_each_line(log: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "audit.parquet"
    assert to_parquet(entries([log], Filter()), path) == 8
    rows = parquet.read_table(path).to_pylist()
    assert [row["seq"] for row in rows] == list(range(1, 9))
    blocked = next(row for row in rows if row["outcome"] == "blocked")
    assert (blocked["tenant"], blocked["elapsed_ms"]) == ("other", 12.5)
    assert json.loads(blocked["line"])["request_id"] == "b"


def _is_rfc_5424(message: bytes) -> bool:
    head, _, body = message.decode().partition(" - ")
    priority, time, host, app, process, kind = head.split(" ")
    utc(time)
    assert host and process.isdigit()
    entry = json.loads(body)
    return (priority, app, kind) == ("<134>1", "inference-guard", "audit") and "seq" in entry


def test_datagrams_of_udp_and_of_a_unix_socket(log: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        address = f"udp://127.0.0.1:{server.getsockname()[1]}"
        assert to_syslog(entries([log], Filter(outcome="blocked")), address) == 1
        assert _is_rfc_5424(server.recv(65_536))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        server.settimeout(5)
        assert to_syslog(entries([log], Filter(tenant="acme")), f"unix://{tmp_path / 'log'}") == 3
        assert all(_is_rfc_5424(server.recv(65_536)) for _ in range(3))


def test_lines_of_tcp_end_in_a_newline(log: Path) -> None:
    got: list[bytes] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            got.extend(self.rfile)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert to_syslog(entries([log], Filter()), f"tcp://127.0.0.1:{server.server_address[1]}")
        thread.join(5)
    assert len(got) == 8 and all(_is_rfc_5424(line.rstrip(b"\n")) for line in got)


@pytest.mark.parametrize("address", ["localhost:514", "udp://host", "http://host:1", "unix://a/b"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(DataError, match="give udp://HOST:PORT"):
        to_syslog([], address)


def test_a_server_that_is_not_there_is_an_error(log: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DataError, match="refused, after 0 lines"):
        to_syslog(entries([log], Filter()), f"tcp://127.0.0.1:{port}")
