"""What the fits of guards behind a prompt's gate have in common: options, reading, one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from guard.commands.fit.output import (
    checked_concept,
    print_json,
    print_judgement,
    print_written,
    require_artifact_name,
)
from guard.config.schema import Dtype
from guard.data.prompts import ForgetPrompt, RetainPrompt, read_rows
from guard.fitting.files import write_report
from guard.models.kind_checks import source_of
from guard.reporting import values
from guard.reporting.progress import Stages, stages

if TYPE_CHECKING:
    from guard.fitting.gated.search import Fit
    from guard.fitting.gated.token_gate import TokenGate
    from guard.models.chat import ChatModel

Concept = Annotated[str, typer.Option(help="What must not be produced, as kind/name.")]
Forget = Annotated[Path, typer.Option(help="Forget prompts, JSON Lines.")]
Retain = Annotated[Path, typer.Option(help="Retain prompts, JSON Lines.")]
Out = Annotated[Path, typer.Option(help="Artifact to write; the report goes beside it.")]
Fpr = Annotated[
    float, typer.Option(min=1e-4, max=0.5, help="False-positive rate on far retain prompts.")
]
NearFpr = Annotated[
    float, typer.Option(min=1e-4, max=0.5, help="False-positive rate on near misses.")
]
Seed = Annotated[int, typer.Option(help="Of the samples taken while fitting.")]
Description = Annotated[str, typer.Option(help="A sentence kept in the artifact.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
FittedGate = Annotated[
    Path | None,
    typer.Option(
        "--gate",
        help="Artifact of a guard of this model, whose gate is taken over; one is fitted if left "
        "out.",
    ),
]


def read(
    forget: Path, retain: Path, out: Path, concept: str, description: str, model: str
) -> tuple[Sequence[ForgetPrompt], Sequence[RetainPrompt]]:
    """The prompts; all that can be checked before the model is loaded, which takes longer."""
    require_artifact_name(out)
    checked_concept(concept, description)
    source_of(model, "language")
    return read_rows(forget, ForgetPrompt), read_rows(retain, RetainPrompt)


def run(
    fit: Callable[[ChatModel, TokenGate | None, Stages], Fit],
    model: str,
    dtype: Dtype,
    device: str,
    gate: Path | None,
    concept: str,
    description: str,
    out: Path,
    as_json: bool,
) -> None:
    from guard.artifact import Artifact
    from guard.fitting.gated import artifacts
    from guard.fitting.gated.token_gate import TokenGate
    from guard.models.chat import TransformersChat

    given_by = None if gate is None else Artifact.load(gate)
    chat = TransformersChat.load(model, dtype=dtype, device=device)
    given = None if given_by is None else TokenGate.of_artifact(given_by, chat)
    started = time.monotonic()
    with stages() as progress:
        fitted = fit(chat, given, progress)
    artifact = artifacts.to_artifact(fitted, chat, concept=concept, description=description)
    artifact.save(out)
    report = artifacts.as_json(fitted, artifact.meta, time.monotonic() - started)
    page = write_report(out, report, artifacts.as_page(fitted, artifact.meta))
    if as_json:
        print_json(report, out, artifact)
        return
    console = Console()
    trials = Table("guard", "strength", "leak rate", "perplexity", "loops", "")
    for guard, trial in zip(fitted.candidates, fitted.trials, strict=True):
        trials.add_row(
            guard.label,
            f"{trial.strength:g}",
            f"{trial.leak_rate:.1%}",
            f"{trial.perplexity:.2f}",
            f"{trial.looping:.1%}",
            "chosen" if trial.chosen else "",
        )
    console.print(trials)
    console.print(values.table("validation split", report["calibration"]))
    print_judgement(console, report)
    print_written(console, out, page)
