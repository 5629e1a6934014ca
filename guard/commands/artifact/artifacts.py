"""`guard artifacts`: keep artifacts in the cache, list the artifacts that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard.artifact import Artifact
from guard.artifact_store import ArtifactStore
from guard.config.kinds import kind_of

app = typer.Typer(
    add_completion=False, help="Keep artifacts in the cache and list them.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog="Example: guard artifacts add guards/harry-potter.safetensors")
def add(
    files: Annotated[list[Path], typer.Argument(help="Artifacts to copy into the cache.")],
    as_json: AsJson = False,
) -> None:
    """Check artifacts and copy them into the cache; does nothing where they are there.

    Configurations name them by digest (artifact = "sha256:..."), `guard inspect` also by concept.
    """
    # all are checked before the first is kept
    artifacts = [Artifact.load(file) for file in files]
    store = ArtifactStore()
    for file in files:
        store.add(file)
    if as_json:
        print(json.dumps([_facts(artifact) for artifact in artifacts], indent=2))
        return
    for file, artifact in zip(files, artifacts, strict=True):
        Console().print(
            f"{file} is kept as sha256:{artifact.digest}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


@app.command(epilog="Example: guard artifacts sign guards/harry-potter.safetensors")
def sign(
    files: Annotated[list[Path], typer.Argument(help="Artifacts that hold no digest yet.")],
) -> None:
    """Write the digest of an artifact's settings and tensors into its file.

    For artifacts of earlier releases, which held none, and only for files that you trust: where
    there is a digest, it must be right.
    """
    # all are checked before the first is written
    artifacts = [Artifact.load_unsigned(file) for file in files]
    for file, artifact in zip(files, artifacts, strict=True):
        artifact.save(file)
        Console().print(
            f"{file} holds its digest, sha256:{artifact.digest}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


@app.command("list", epilog="Example: guard artifacts list")
def list_artifacts(as_json: AsJson = False) -> None:
    """List the artifacts in the cache."""
    artifacts = ArtifactStore().list()
    if as_json:
        print(json.dumps([_facts(artifact) for artifact in artifacts], indent=2))
        return
    table = Table("digest", "concept", "method", "for", "fitted on", "created")
    for artifact in artifacts:
        meta = artifact.meta
        cells = (meta.concept, meta.method, kind_of(meta) or "-", meta.model.name)
        table.add_row(artifact.short_digest, *map(Text, cells), meta.created.isoformat())
    Console().print(table)


def _facts(artifact: Artifact) -> dict[str, Any]:
    meta = artifact.meta
    return {
        "digest": artifact.digest,
        "concept": meta.concept,
        "method": meta.method,
        "kind": kind_of(meta),
        "description": meta.description,
        "created": meta.created.isoformat(),
        "model": meta.model.model_dump(mode="json"),
    }
