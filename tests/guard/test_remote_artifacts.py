"""Artifacts at URLs: in memory, and in S3 as moto serves it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guard import remote_artifacts
from guard.artifact import Artifact
from guard.artifact_store import ArtifactStore
from guard.config.schema import load_config
from guard.errors import ArtifactError, ConfigError
from guard.remote_artifacts import fetched
from tests.guard.conftest import MakeArtifact

fsspec = pytest.importorskip("fsspec")
URL = "memory://bucket/guards/x.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "cache")


@pytest.fixture
def put(make_artifact: MakeArtifact, tmp_path: Path) -> Iterator[Any]:
    """Puts an artifact, or bytes, at a URL, and says its digest."""

    def put(content: bytes | None = None, url: str = URL, **options: Any) -> str:
        artifact = make_artifact(**options)
        artifact.save(tmp_path / "put.safetensors")
        with fsspec.open(url, "wb") as file:
            whole = (tmp_path / "put.safetensors").read_bytes()
            file.write(whole if content is None else content)
        return artifact.digest

    yield put
    fsspec.filesystem("memory").rm("/", recursive=True)


def test_it_is_kept_by_its_digest(store: ArtifactStore, put: Any) -> None:
    digest = put()
    path = fetched(URL, None, store)
    assert path == store.folder / f"{digest}.safetensors"
    assert Artifact.load(path).digest == digest
    assert [each.name for each in store.folder.glob("*.safetensors")] == [path.name]


def test_one_that_has_not_changed_is_not_read_again(
    store: ArtifactStore, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    path = fetched(URL, None, store)
    monkeypatch.setattr(remote_artifacts, "_read", None)
    assert fetched(URL, None, store) == path


def test_one_that_has_changed_is_read_again(store: ArtifactStore, put: Any) -> None:
    put(concept="object/a")
    first = fetched(URL, None, store)
    second = put(concept="object/b")
    assert fetched(URL, None, store) == store.path_of(second) != first


def test_a_pinned_one_in_the_cache_needs_no_store(store: ArtifactStore, put: Any) -> None:
    digest = put()
    path = fetched(URL, digest, store)
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
    assert fetched(URL, digest, store) == path
    with pytest.raises(ArtifactError, match="cannot be fetched"):
        fetched(URL, None, store)


def test_another_one_than_the_pinned_is_refused(store: ArtifactStore, put: Any) -> None:
    digest = put(concept="object/a")
    put(concept="object/b")
    with pytest.raises(ArtifactError, match="another artifact was put there"):
        fetched(URL, digest, store)
    assert not [*store.folder.glob("*.safetensors")]


@pytest.mark.parametrize("content", [b"", b"not an artifact", b"\0" * 20])
def test_what_is_no_artifact_is_not_kept(store: ArtifactStore, put: Any, content: bytes) -> None:
    put(content)
    with pytest.raises(ArtifactError) as error:
        fetched(URL, None, store)
    assert str(error.value).startswith(URL) and "/tmp" not in str(error.value)
    assert not [*store.folder.glob("**/*.safetensors")]


def test_one_that_is_too_large_is_not_read_whole(
    store: ArtifactStore, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    monkeypatch.setattr(remote_artifacts, "MAX_FILE_BYTES", 100)
    with pytest.raises(ArtifactError, match="larger than"):
        fetched(URL, None, store)
    # a store that does not know its files' sizes
    with pytest.raises(ArtifactError, match="larger than"):
        remote_artifacts._read(fsspec.filesystem("memory"), "/bucket/guards/x.safetensors", {}, URL)


def test_a_store_that_hangs_is_an_error(
    store: ArtifactStore, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    monkeypatch.setattr(remote_artifacts, "TIMEOUT_S", 0.05)
    ended = threading.Event()
    monkeypatch.setattr(remote_artifacts, "_fetch", lambda *_: ended.wait(60))
    with pytest.raises(ArtifactError, match="not fetched within"):
        fetched(URL, None, store)
    ended.set()


def test_one_that_changes_while_it_is_read_is_not_kept(
    store: ArtifactStore, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(concept="object/a")
    read = remote_artifacts._read

    def read_and_change(*given: Any) -> bytes:
        content = read(*given)
        put(concept="object/b")
        return content

    monkeypatch.setattr(remote_artifacts, "_read", read_and_change)
    with pytest.raises(ArtifactError, match="changed while it was read"):
        fetched(URL, None, store)
    assert not [*store.folder.glob("**/*.json")]


@pytest.mark.parametrize(
    "url",
    [
        "nothing://x/y",
        "https://user:secret@host.invalid/x?token=secret",
        "simplecache::https://user:secret@host.invalid/x",
    ],
)
def test_what_cannot_be_fetched_is_told_without_secrets(store: ArtifactStore, url: str) -> None:
    with pytest.raises(ArtifactError) as error:
        fetched(url, None, store)
    assert "secret" not in str(error.value)


def _config(folder: Path, artifact: str, more: str = "") -> Path:
    path = folder / "config.toml"
    path.write_text(f'[[guards]]\nname = "g"\nartifact = "{artifact}"\n{more}')
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "artifacts"


def test_a_configuration_names_a_url(tmp_path: Path, cache: Path, put: Any) -> None:
    digest = put()
    config = load_config(_config(tmp_path, URL, f'digest = "sha256:{digest}"\n'))
    assert config.guards[0].artifact == cache / f"{digest}.safetensors"
    with pytest.raises(ConfigError, match="line 3.*artifact.*another artifact"):
        load_config(_config(tmp_path, URL, f'digest = "sha256:{"0" * 64}"\n'))


def test_a_file_can_be_pinned_too(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    path, artifact = tmp_path / "g.safetensors", make_artifact()
    artifact.save(path)
    digest = artifact.digest
    load_config(_config(tmp_path, str(path), f'digest = "sha256:{digest}"\n'))
    with pytest.raises(ConfigError, match="has the digest"):
        load_config(_config(tmp_path, str(path), f'digest = "sha256:{"0" * 64}"\n'))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://host.invalid/x.safetensors", "use https"),
        ("sftp://user:secret@host.invalid/x.safetensors", "has a password"),
        ("simplecache::http://user:secret@host.invalid/x.safetensors", "through another"),
        ("zip://x.safetensors::https://user:secret@host.invalid/y.zip", "through another"),
    ],
)
def test_urls_that_are_not_safe_are_refused(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        load_config(_config(tmp_path, url))
    assert "secret" not in str(error.value)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of an S3 of the tests' own."""
    for package in ("s3fs", "moto", "flask_cors"):
        pytest.importorskip(package)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def test_s3(
    tmp_path: Path,
    cache: Path,
    s3: str,
    make_artifact: MakeArtifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.mkdir("guards-bucket")
    path, artifact = tmp_path / "x.safetensors", make_artifact(concept="object/a")
    artifact.save(path)
    files.put(str(path), "guards-bucket/guards/x.safetensors")
    url = "s3://guards-bucket/guards/x.safetensors"
    config = load_config(_config(tmp_path, url))
    first = artifact.digest
    assert config.guards[0].artifact == cache / f"{first}.safetensors"
    (note,) = cache.glob("fetched/*.json")
    before = json.loads(note.read_text())
    load_config(_config(tmp_path, url))
    assert json.loads(note.read_text()) == before
    make_artifact(concept="object/b").save(path)
    files.put(str(path), "guards-bucket/guards/x.safetensors")
    changed = load_config(_config(tmp_path, url)).guards[0].artifact
    assert Artifact.load(changed).meta.concept == "object/b"
    with pytest.raises(ConfigError, match="cannot be fetched"):
        load_config(_config(tmp_path, url.replace("x.", "none.")))
    pinned = load_config(_config(tmp_path, "s3://gone/x", f'digest = "sha256:{first}"\n'))
    assert Artifact.load(pinned.guards[0].artifact).meta.concept == "object/a"
