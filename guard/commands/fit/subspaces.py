"""`guard fit ablation` and `guard fit kif`: a subspace of the residual stream that is taken out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from guard.commands.fit.options import Device, Model, ModelDtype
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
    from guard.fitting.gated.fit import Fit
    from guard.fitting.gated.token_gate import TokenGate
    from guard.models.chat import ChatModel

Concept = Annotated[str, typer.Option(help="What must not be produced, as kind/name.")]
Forget = Annotated[Path, typer.Option(help="Forget prompts, JSON Lines.")]
Retain = Annotated[Path, typer.Option(help="Retain prompts, JSON Lines.")]
Out = Annotated[Path, typer.Option(help="Artifact to write; the report goes beside it.")]
Rank = Annotated[int, typer.Option(min=1, max=4, help="Directions that are taken out.")]
Fpr = Annotated[
    float, typer.Option(min=1e-4, max=0.5, help="False-positive rate on far retain prompts.")
]
NearFpr = Annotated[
    float, typer.Option(min=1e-4, max=0.5, help="False-positive rate on near misses.")
]
Seed = Annotated[int, typer.Option(help="Of the samples taken while fitting.")]
Description = Annotated[str, typer.Option(help="A sentence kept in the artifact.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def ablation(
    model: Model,
    concept: Concept,
    forget: Forget,
    retain: Retain,
    out: Out,
    gate: Annotated[
        Path | None,
        typer.Option(
            help="Artifact of a guard of this model, whose gate is taken over; one is fitted if "
            "left out."
        ),
    ] = None,
    rank: Rank = 1,
    fpr: Fpr = 0.01,
    near_fpr: NearFpr = 0.05,
    seed: Seed = 0,
    description: Description = "",
    dtype: ModelDtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit a directional ablation: the direction of a subject, taken out of the residual stream
    where a prompt's gate fires.

    Writes NAME.safetensors, NAME.report.json and NAME.report.html.
    """

    def fit(chat: ChatModel, given: TokenGate | None, progress: Stages) -> Fit:
        from guard.fitting.gated.fit import fit_ablation
        from guard.fitting.gated.token_gate import TokenGate
        from guard.fitting.steering.gate_search import GateRates

        rates = GateRates(fpr, near_fpr)
        about, others = rows
        if given is None:
            given = TokenGate.fitted(chat, about, others, rates, seed=seed, progress=progress)
        return fit_ablation(chat, about, others, given, rank=rank, seed=seed, progress=progress)

    rows = _read(forget, retain, out, concept, description, model)
    _run(fit, model, dtype, device, gate, concept, description, out, as_json)


def kif(
    model: Model,
    concept: Concept,
    forget: Forget,
    retain: Retain,
    out: Out,
    gate: Annotated[
        Path | None,
        typer.Option(
            help="Artifact of a guard of this model, whose gate is taken over; the signature's own "
            "score decides if left out."
        ),
    ] = None,
    rank: Rank = 1,
    fpr: Fpr = 0.01,
    near_fpr: NearFpr = 0.05,
    seed: Seed = 0,
    description: Description = "",
    dtype: ModelDtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit a guard of KIF: the activation signature of a subject, suppressed while it is active.

    Writes NAME.safetensors, NAME.report.json and NAME.report.html.
    """

    def fit(chat: ChatModel, given: TokenGate | None, progress: Stages) -> Fit:
        from guard.fitting.gated.fit import fit_kif
        from guard.fitting.steering.gate_search import GateRates

        rates = GateRates(fpr, near_fpr)
        return fit_kif(chat, *rows, given, rates, rank=rank, seed=seed, progress=progress)

    rows = _read(forget, retain, out, concept, description, model)
    _run(fit, model, dtype, device, gate, concept, description, out, as_json)


def _read(
    forget: Path, retain: Path, out: Path, concept: str, description: str, model: str
) -> tuple[Sequence[ForgetPrompt], Sequence[RetainPrompt]]:
    """The prompts; all that can be checked before the model is loaded, which takes longer."""
    require_artifact_name(out)
    checked_concept(concept, description)
    source_of(model, "language")
    return read_rows(forget, ForgetPrompt), read_rows(retain, RetainPrompt)


def _run(
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
    trials = Table("act layers", "strength", "leak rate", "perplexity", "loops", "")
    for trial in fitted.trials:
        trials.add_row(
            f"{trial.act_layers[0]} to {trial.act_layers[-1]}",
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
