"""What all `guard fit` commands write and print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from guard.errors import DataError

if TYPE_CHECKING:
    from guard.artifact import Artifact


def require_artifact_name(out: Path) -> None:
    """Raise DataError unless `out` is the name of an artifact."""
    if out.suffix != ".safetensors":
        raise DataError(f"{out}: an artifact's name ends in .safetensors")


def with_artifact(report: Mapping[str, Any], out: Path, artifact: Artifact) -> dict[str, Any]:
    """A report with the artifact's path and digest, JSON-ready."""
    return {**report, "artifact": str(out), "digest": artifact.digest}


def print_json(report: Mapping[str, Any], out: Path, artifact: Artifact) -> None:
    """Print a report with the artifact's path and digest."""
    print(json.dumps(with_artifact(report, out, artifact), indent=2))


def facts(artifact: Artifact, **more: Any) -> dict[str, Any]:
    """The report of a fit that has no page: method, concept, settings and calibration."""
    meta = artifact.meta
    return {
        "method": meta.method,
        "concept": meta.concept,
        "settings": meta.settings,
        "calibration": meta.calibration,
        **more,
    }


def print_written(console: Console, *paths: Path) -> None:
    """Print which files were written."""
    names = " and ".join(map(str, paths))
    console.print(f"wrote {names}", markup=False, highlight=False, soft_wrap=True)
