"""Where the artifact of one of `[[guards]]` is: a file, or a digest in the cache of artifacts."""

from __future__ import annotations

from pathlib import Path

from guard.artifact_store import ArtifactStore, is_digest

PREFIX = "sha256:"


def artifact_path(reference: str, folder: Path) -> Path:
    """The file of the artifact that a configuration in `folder` names by `reference`.

    "sha256:DIGEST", or 12 hex digits or more that are no file's name, is the artifact of that
    digest in the cache; everything else is a path, relative to `folder`. Raises ArtifactError
    where the cache has no such artifact; whether a path is a file is not checked.
    """
    if reference.startswith(PREFIX):
        return ArtifactStore().path_of(reference.removeprefix(PREFIX))
    path = folder / reference
    if is_digest(reference) and not path.exists():
        return ArtifactStore().path_of(reference)
    return path
