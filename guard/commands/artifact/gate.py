"""`guard gate`: an image guard behind the classifiers of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from guard.artifact import Artifact
from guard.commands.fit.output import print_json, print_written, require_artifact_name
from guard.errors import ArtifactError, DataError

app = typer.Typer(add_completion=False)


@app.command(
    epilog="Example: guard gate knife-rece.safetensors --by knife-cgce.safetensors "
    "--out knife-rece-headed.safetensors"
)
def gate(
    artifact: Annotated[
        Path,
        typer.Argument(help="A fitted or imported image guard that has a gate, or could have one."),
    ],
    by: Annotated[
        Path, typer.Option(help="The guard whose classifiers decide: of `guard fit cgce`.")
    ],
    out: Annotated[Path, typer.Option(help="Artifact to write.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Put an image guard behind the classifiers of a CGCE guard, in place of its own gate.

    It then acts on the prompts on which that guard fires, and its threshold is that one's.
    Nothing is fitted, and no model is loaded.
    """
    from guard.fitting.images.classifier_gate import gated_by

    require_artifact_name(out)
    if out.resolve() in {artifact.resolve(), by.resolve()}:
        raise DataError(f"{out}: is one of the two artifacts: give another --out")
    fitted, classifiers = Artifact.load(artifact), Artifact.load(by)
    try:
        gated = gated_by(fitted, classifiers)
    except ArtifactError as error:
        raise ArtifactError(f"{artifact}, gated by {by}: {error.message}") from error
    gated.save(out)
    calibration = dict(gated.meta.calibration)
    if as_json:
        print_json({"threshold": gated.meta.settings["threshold"], **calibration}, out, gated)
    else:
        print_written(Console(), out)
