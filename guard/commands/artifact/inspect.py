"""`guard inspect`: prints the contents of an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard.artifact import Artifact
from guard.artifact_store import ArtifactStore

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: guard inspect guards/harry-potter.safetensors")
def inspect(
    artifact: Annotated[
        str,
        typer.Argument(help="A file, or a digest or concept that `guard artifacts list` shows."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Check an artifact (format, hash, finite values) and print its contents."""
    contents = describe(_find(artifact))
    if as_json:
        print(json.dumps(contents, indent=2))
        return
    console = Console()
    facts = Table(show_header=False, title=Text(artifact), title_justify="left")
    facts.add_column(overflow="fold")
    facts.add_column(overflow="fold")
    for name, value in _flat("", {k: v for k, v in contents.items() if k != "tensors"}):
        facts.add_row(Text(name), Text(value))
    tensors = Table("tensor", "shape", "norm", "largest", title="Tensors", title_justify="left")
    for tensor in contents["tensors"]:
        shape = " x ".join(map(str, tensor["shape"])) or "scalar"
        row = (repr(tensor["name"])[1:-1], shape, f"{tensor['norm']:.4g}", f"{tensor['max']:.4g}")
        tensors.add_row(*map(Text, row))
    console.print(facts)
    console.print(tensors)


def describe(artifact: Artifact) -> dict[str, Any]:
    """Metadata, digest and the shape, norm and largest magnitude of each tensor, JSON-ready."""
    tensors = [
        {
            "name": name,
            "shape": list(values.shape),
            "norm": float(np.linalg.norm(values.astype(np.float64))),
            "max": float(np.abs(values).max(initial=0.0)),
        }
        for name, values in artifact.tensors.items()
    ]
    return {
        "digest": artifact.digest,
        **artifact.meta.as_json(),
        "tensors": tensors,
    }


def _find(name: str) -> Artifact:
    looks_like_path = Path(name).exists() or name.endswith(".safetensors")
    return Artifact.load(name) if looks_like_path else ArtifactStore().get(name)


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        rows = []
        for name, item in value.items():
            rows += _flat(f"{prefix}.{name}" if prefix else name, item)
        return rows
    # Strings deep inside settings were not checked for control characters; JSON escapes them.
    return [(prefix, value if _plain(value) else json.dumps(value))]


def _plain(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()
