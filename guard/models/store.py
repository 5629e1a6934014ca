"""Artifacts in the cache, each in a file named by its digest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from guard.artifact import Artifact
from guard.errors import ArtifactError
from guard.models.cache import cache_dir

_SUFFIX = ".safetensors"
_DIGEST = re.compile(r"[0-9a-f]{12,64}")


class ArtifactStore:
    """A folder of artifacts, by default `artifacts` in the cache."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else cache_dir() / "artifacts"

    def add(self, path: Path | str) -> str:
        """Check the artifact at `path`, keep a copy and return its digest (64 hex digits).

        Adding the same content again changes nothing. Raises ArtifactError.
        """
        artifact = Artifact.load(path)
        target = self._path(artifact.digest)
        if not target.is_file():
            artifact.save(target)
        return artifact.digest

    def get(self, name: str) -> Artifact:
        """The artifact of that digest (12 digits or more), concept, or last part of a concept.

        Raises ArtifactError where there is none, several, or a damaged one.
        """
        digests = self._digests()
        found = [digest for digest in digests if digest.startswith(name)]
        if not (_DIGEST.fullmatch(name) and found):
            concepts = {digest: self._load(digest).meta.concept for digest in digests}
            found = [d for d, c in concepts.items() if name in {c, c.rpartition("/")[2]}]
        if not found:
            raise ArtifactError(f"no artifact {name!r} in {self.folder}")
        if len(found) > 1:
            choices = ", ".join(digest[:12] for digest in found)
            raise ArtifactError(f"several artifacts are called {name!r}: say which of {choices}")
        return self._load(found[0])

    def list(self) -> Sequence[Artifact]:
        """Every artifact, by concept, then digest. Raises ArtifactError at a damaged one."""
        artifacts = [self._load(digest) for digest in self._digests()]
        return sorted(artifacts, key=lambda artifact: (artifact.meta.concept, artifact.digest))

    def _digests(self) -> Sequence[str]:
        if not self.folder.is_dir():
            return []
        stems = (path.stem for path in self.folder.glob(f"*{_SUFFIX}"))
        return sorted(stem for stem in stems if len(stem) == 64 and _DIGEST.fullmatch(stem))

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}{_SUFFIX}"

    def _load(self, digest: str) -> Artifact:
        path = self._path(digest)
        artifact = Artifact.load(path)
        if artifact.digest != digest:
            raise ArtifactError(f"{path}: its content is not what its name says: delete it")
        return artifact
