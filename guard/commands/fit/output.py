"""What all `guard fit` commands write and print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from rich.console import Console

from guard.errors import DataError

if TYPE_CHECKING:
    from guard.artifact import Artifact

MAX_CONCEPT = 120
"""Characters of a concept; a name of a subject comes behind it."""


def require_artifact_name(out: Path) -> None:
    """Raise DataError unless `out` is the name of an artifact that can be written."""
    if out.suffix != ".safetensors":
        raise DataError(f"{out}: an artifact's name ends in .safetensors")
    require_writable(out)


def require_writable(out: Path) -> None:
    """Raise DataError where no file could be written at `out`; nothing stays written."""
    if out.is_dir():
        raise DataError(f"{out}: is a folder: give the name of a file in it")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise DataError(f"{out}: {folder} is a file, not a folder: choose another place")
    try:
        # permissions alone do not tell: for root, on shares, on a full disk
        with TemporaryFile(dir=folder) as file:
            file.write(b" ")
    except OSError as error:
        raise DataError(
            f"{out}: the folder {folder} cannot be written to ({error.strerror}): choose another "
            "place"
        ) from error


def checked_concept(concept: str, description: str = "") -> None:
    """Raise DataError for a concept or a description that an artifact cannot be named by."""
    for option, text in (("--concept", concept), ("--description", description)):
        if not text.replace("\n", " ").isprintable():
            raise DataError(f"{option}: holds control characters: leave them out")
    if not 1 <= len(concept) <= MAX_CONCEPT:
        raise DataError(
            f"--concept: has {len(concept)} characters: give 1 to {MAX_CONCEPT}, as in "
            "character/harry-potter"
        )


def with_artifact(report: Mapping[str, Any], out: Path, artifact: Artifact) -> dict[str, Any]:
    """A report with the artifact's path and digest, JSON-ready."""
    return {**report, "artifact": str(out), "digest": artifact.digest}


def print_json(report: Mapping[str, Any], out: Path, artifact: Artifact) -> None:
    """Print a report with the artifact's path and digest."""
    print(json.dumps(with_artifact(report, out, artifact), indent=2))


def print_judgement(console: Console, report: Mapping[str, Any]) -> None:
    """Print the judgement of a report, on a line by itself."""
    console.print(report["judgement"], markup=False, highlight=False, soft_wrap=True)


def print_written(console: Console, *paths: Path) -> None:
    """Print which files were written."""
    names = " and ".join(map(str, paths))
    console.print(f"wrote {names}", markup=False, highlight=False, soft_wrap=True)
