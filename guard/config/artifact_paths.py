"""Where the artifact of one of `[[guards]]` is: a file, a URL, or a digest in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from guard.artifact import Artifact
from guard.artifact_store import ArtifactStore, is_digest
from guard.config.toml_lines import KeyPath
from guard.errors import ArtifactError
from guard.remote_artifacts import fetched, is_chain, is_url

PREFIX = "sha256:"
_UNPROTECTED = frozenset({"http", "ftp"})


class ArtifactPaths:
    """The files of the artifacts that a configuration in `folder` names; each is looked for once,
    so that what was checked is what is used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[tuple[str, str | None], Path] = {}

    def of(self, reference: str, pinned: str | None = None) -> Path:
        """The file of the artifact that is named by `reference`; `pinned` is "sha256:DIGEST" of
        what it must be.

        "sha256:DIGEST", or 12 hex digits or more that are no file's name, is the artifact of that
        digest in the cache; a URL is fetched into it; everything else is a path, relative to the
        folder. Raises ArtifactError where the cache has no such artifact, where it cannot be
        fetched or has another digest; whether a path is a file is not checked otherwise.
        """
        key = reference, pinned
        if key not in self._known:
            digest = pinned.removeprefix(PREFIX) if pinned is not None else None
            self._known[key] = self._found(reference, digest)
        return self._known[key]

    def _found(self, reference: str, digest: str | None) -> Path:
        if is_url(reference):
            return fetched(reference, digest)
        path = self._local(reference)
        if digest is not None and (found := Artifact.load(path).digest) != digest:
            raise ArtifactError(
                f"{path}: has the digest {found[:12]}..., not {digest[:12]}...: put the right "
                "file there, or change 'digest'"
            )
        return path

    def _local(self, reference: str) -> Path:
        if reference.startswith(PREFIX):
            return ArtifactStore().path_of(reference.removeprefix(PREFIX))
        path = self._folder / reference
        if is_digest(reference) and not path.exists():
            return ArtifactStore().path_of(reference)
        return path


def url_problems(index: int, guard: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with the URL of `guards[index]`, if its artifact is at one."""
    reference = guard.get("artifact")
    if not isinstance(reference, str) or not is_url(reference):
        return
    place = ("guards", index, "artifact")
    if is_chain(reference):
        yield place, "names one store through another ('::'): name the file itself"
        return
    try:
        parts = urlsplit(reference)
    except ValueError:
        yield place, "is no valid URL: correct it"
        return
    if parts.password is not None:
        yield place, "has a password: give the store's credentials in the environment"
    if parts.scheme in _UNPROTECTED and "digest" not in guard:
        yield (
            place,
            f"comes by {parts.scheme}, where anybody on the way may change it: use https, or set "
            "'digest' to what `guard inspect` says of it",
        )
