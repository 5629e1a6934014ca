"""Artifacts at URLs of any store that fsspec knows, kept in the cache by their digest.

Only a configuration may name a URL, never a request.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import urlsplit

from guard.artifact import MAX_FILE_BYTES, Artifact
from guard.artifact_store import ArtifactStore
from guard.errors import ArtifactError

TIMEOUT_S = 120.0
"""For one artifact: the store's own client may wait far longer."""
_CHUNK = 2**20
_VERSIONED = frozenset({"ETag", "etag", "md5", "generation", "LastModified", "mtime", "created"})
"""What stores say of a file that changes with its content."""
_WEB = frozenset({"http", "https"})
_EXTRA = "pip install 'inference-guard[stores]'"
T = TypeVar("T")


def is_url(reference: str) -> bool:
    """Whether an artifact is to be fetched."""
    return "://" in reference


def is_chain(url: str) -> bool:
    """Whether fsspec would open one store through another, as `zip://x::http://host/y`: what is
    checked of a URL holds of the first one alone."""
    return "::" in url.partition("?")[0]


def fetched(url: str, digest: str | None = None, store: ArtifactStore | None = None) -> Path:
    """The cached file of the artifact at `url`; `digest` (64 hex digits) is what it must have.

    With a digest that is in the cache nothing is asked. Without one the store is asked each time
    whether the file has changed. Raises ArtifactError.
    """
    store = store if store is not None else ArtifactStore()
    if digest is not None and store.has(digest):
        return store.path_of(digest)
    if is_chain(url):
        raise ArtifactError("an artifact's URL names one file of one store: it has no '::'")
    shown = _shown(url)
    found = _in_time(lambda: _fetch(url, shown, digest, store), shown)
    return store.path_of(found)


def _fetch(url: str, shown: str, digest: str | None, store: ArtifactStore) -> str:
    """The digest of the artifact, which is in the cache."""
    file_system, path = _opened(url, shown)
    note = store.folder / "fetched" / f"{hashlib.sha256(url.encode()).hexdigest()}.json"
    try:
        info = file_system.info(path)
        version = _version_of(info)
        known = _noted(note, version)
        if known is not None and digest is None and store.has(known):
            return known
        content = _read(file_system, path, info, shown)
        if _version_of(file_system.info(path)) != version:
            raise ArtifactError(f"{shown}: has changed while it was read: try again")
    except ArtifactError:
        raise
    except Exception as error:
        # every store has errors of its own; their text may have a signed URL
        raise ArtifactError(
            f"{shown}: cannot be fetched ({type(error).__name__}): check the URL and the "
            "credentials; with its 'digest' a cached artifact needs no store"
        ) from error
    found = _kept(content, shown, digest, store)
    if version is not None:
        _write(note, json.dumps({"version": version, "digest": found}))
    return found


def _opened(url: str, shown: str) -> tuple[Any, str]:
    try:
        import fsspec
        from fsspec.core import url_to_fs
    except ImportError:
        raise ArtifactError(f"{shown}: fetching needs fsspec: {_EXTRA}") from None
    try:
        # what another process has listed before may be old
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        scheme = urlsplit(url).scheme
        if scheme in _WEB:
            options["client_kwargs"] = _client_options(is_protected=scheme == "https")
        return url_to_fs(url, **options)  # type: ignore[no-any-return]
    except ImportError as error:
        raise ArtifactError(f"{shown}: {error}, or {_EXTRA}") from None
    except Exception as error:
        protocols = ", ".join(sorted({"s3", "gs", "az", "https"} & {*fsspec.available_protocols()}))
        raise ArtifactError(
            f"{shown}: is no URL of a store ({type(error).__name__}), as of {protocols}"
        ) from None


def _client_options(*, is_protected: bool) -> dict[str, Any]:
    """What aiohttp's session takes: a server that is asked by https sends nobody to a place where
    anybody on the way may change the file."""
    import aiohttp

    async def check(_session: Any, _context: Any, params: Any) -> None:
        place = params.response.headers.get("Location", "")
        if is_protected and urlsplit(place).scheme not in {"https", ""}:
            raise aiohttp.ClientError("a redirect leaves https")

    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(check)
    return {"trace_configs": [tracing]}


def _read(file_system: Any, path: str, info: dict[str, Any], shown: str) -> bytes:
    too_large = ArtifactError(
        f"{shown}: is larger than {MAX_FILE_BYTES // 2**20} MiB: not an artifact"
    )
    if (info.get("size") or 0) > MAX_FILE_BYTES:
        raise too_large
    content = bytearray()
    # a web server may answer a part with more than was asked for: a stream is read no further
    is_web = bool(_WEB & {*_protocols(file_system)})
    options = {"block_size": 0} if is_web else {"block_size": _CHUNK, "cache_type": "none"}
    with file_system.open(path, "rb", **options) as file:
        while chunk := file.read(_CHUNK):
            content += chunk
            if len(content) > MAX_FILE_BYTES:
                raise too_large
    return bytes(content)


def _protocols(file_system: Any) -> tuple[str, ...]:
    found = file_system.protocol
    return (found,) if isinstance(found, str) else tuple(found)


def _kept(content: bytes, shown: str, digest: str | None, store: ArtifactStore) -> str:
    """Check an artifact and add it to the cache."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fetched.safetensors"
        path.write_bytes(content)
        try:
            artifact = Artifact.load(path)
        except ArtifactError as error:
            raise ArtifactError(f"{shown}: {str(error).removeprefix(f'{path}: ')}") from None
        if digest is not None and artifact.digest != digest:
            raise ArtifactError(
                f"{shown}: has the digest {artifact.digest[:12]}..., not {digest[:12]}...: "
                "another artifact was put there; check it, then change 'digest'"
            )
        return store.add(path)


def _version_of(info: dict[str, Any]) -> str | None:
    """What changes with the content of a file; None where the store does not say."""
    known = _VERSIONED & info.keys()
    if not known:
        return None
    # no more than these: an address behind a redirect may be another one each time
    facts = sorted((name, str(info[name])) for name in (*known, "size") if name in info)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _noted(note: Path, version: str | None) -> str | None:
    """The digest that a file had in this version; None where it is not known."""
    try:
        noted = json.loads(note.read_text())
        return str(noted["digest"]) if noted["version"] == version else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    temporary.write_text(text)
    temporary.replace(path)


def _in_time(work: Callable[[], T], shown: str) -> T:
    """The result of `work`. Raises ArtifactError where it takes longer than TIMEOUT_S."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    # one that hangs must not keep the process from ending
    thread = threading.Thread(target=run, name="fetch", daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if errors:
        raise errors[0]
    if not results:
        raise ArtifactError(f"{shown}: was not fetched within {TIMEOUT_S:.0f} s: check the store")
    return results[0]


def _shown(url: str) -> str:
    """A URL without what may be a secret: its user, its query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
