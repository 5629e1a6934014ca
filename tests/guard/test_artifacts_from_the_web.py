"""Artifacts from a web server that does what it should not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from guard import remote_artifacts
from guard.artifact_store import ArtifactStore
from guard.errors import ArtifactError
from guard.remote_artifacts import fetched
from tests.guard.conftest import MakeArtifact

pytest.importorskip("fsspec")
ENDLESS = 2**26


class Web(ThreadingHTTPServer):
    """`/x` is an artifact, `/moved` sends there, and `/part` answers a part with far more."""

    content = b""
    sent = 0


class _Handler(BaseHTTPRequestHandler):
    server: Web

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._begin()

    def do_GET(self) -> None:
        self._begin()
        if self.path != "/part":
            self.wfile.write(self.server.content if self.path == "/x" else b"")
            return
        try:
            for _ in range(ENDLESS // 2**16):
                self.wfile.write(b"x" * 2**16)
                self.server.sent += 2**16
        except OSError:
            pass  # the client has hung up

    def _begin(self) -> None:
        content = self.server.content
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/x")
            self.send_header("Content-Length", "0")
        elif self.path == "/part" and self.command == "GET":
            self.send_response(206)
            self.send_header("Content-Length", str(ENDLESS))
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "cache")


def _address(web: Web, path: str) -> str:
    return f"http://127.0.0.1:{web.server_port}{path}"


def test_it_is_fetched_also_behind_a_redirect(
    web: Web, store: ArtifactStore, make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    artifact = make_artifact()
    artifact.save(tmp_path / "x.safetensors")
    web.content = (tmp_path / "x.safetensors").read_bytes()
    for path in ("/x", "/moved"):
        (store.folder / f"{artifact.digest}.safetensors").unlink(missing_ok=True)
        assert fetched(_address(web, path), artifact.digest, store).is_file()


def test_a_redirect_does_not_leave_https(
    web: Web, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = remote_artifacts._client_options
    # this server has no certificate: its client takes it for one that is asked by https
    monkeypatch.setattr(remote_artifacts, "_client_options", lambda **_: options(is_protected=True))
    with pytest.raises(ArtifactError, match="not an artifact|too short|safetensors"):
        fetched(_address(web, "/x"), None, store)
    with pytest.raises(ArtifactError, match="cannot be fetched"):
        fetched(_address(web, "/moved"), None, store)


def test_a_part_that_is_larger_than_was_asked_for_is_not_read_whole(
    web: Web, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.content = b"x"
    monkeypatch.setattr(remote_artifacts, "MAX_FILE_BYTES", 2**16)
    with pytest.raises(ArtifactError, match="larger than"):
        fetched(_address(web, "/part"), None, store)
    assert web.sent < ENDLESS
