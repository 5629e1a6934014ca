"""Artifacts in the cache, each in a file named by its digest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from guard.artifact import Artifact
from guard.cache import cache_dir
from guard.errors import ArtifactError

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

        Raises ArtifactError where no artifact or several have that name, or where its file is
        damaged.
        """
        digests = self._digests()
        matches = [digest for digest in digests if digest.startswith(name)]
        if not (_DIGEST.fullmatch(name) and matches):
            concepts = {digest: self._load(digest).meta.concept for digest in digests}
            matches = [d for d, c in concepts.items() if name in {c, c.rpartition("/")[2]}]
        return self._load(self._single(name, matches))

    def path_of(self, digest: str) -> Path:
        """The file of the artifact whose digest starts with `digest` (12 to 64 hex digits).

        The file's content is checked. Raises ArtifactError where no artifact or several have such
        a digest, or where the file is damaged.
        """
        if not is_digest(digest):
            raise ArtifactError(f"{digest!r} is no digest: give 12 to 64 of its hex digits")
        matches = [known for known in self._digests() if known.startswith(digest)]
        artifact = self._load(self._single(digest, matches))
        return self._path(artifact.digest)

    def has(self, digest: str) -> bool:
        """Whether there is an artifact of that digest (64 hex digits)."""
        return self._path(digest).is_file()

    def list(self) -> Sequence[Artifact]:
        """Every artifact, by concept, then digest. Raises ArtifactError at a damaged one."""
        artifacts = [self._load(digest) for digest in self._digests()]
        return sorted(artifacts, key=lambda artifact: (artifact.meta.concept, artifact.digest))

    def _single(self, name: str, digests: Sequence[str]) -> str:
        if not digests:
            raise ArtifactError(f"no artifact {name!r} in {self.folder}")
        if len(digests) > 1:
            choices = ", ".join(digest[:12] for digest in digests)
            raise ArtifactError(f"several artifacts are called {name!r}: choose one of {choices}")
        return digests[0]

    def _digests(self) -> Sequence[str]:
        if not self.folder.is_dir():
            return []
        stems = (path.stem for path in self.folder.glob(f"*{_SUFFIX}"))
        return sorted(stem for stem in stems if len(stem) == 64 and is_digest(stem))

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}{_SUFFIX}"

    def _load(self, digest: str) -> Artifact:
        path = self._path(digest)
        artifact = Artifact.load(path)
        if artifact.digest != digest:
            raise ArtifactError(
                f"{path}: its content does not have the digest in its name: delete it"
            )
        return artifact


def is_digest(text: str) -> bool:
    """Whether `text` is a digest, or the first 12 hex digits or more of one."""
    return _DIGEST.fullmatch(text) is not None
