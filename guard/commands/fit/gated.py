"""What the fits of guards behind a prompt's gate have in common: options, reading, one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from guard.data.prompts import ForgetPrompt, RetainPrompt, read_rows
from guard.fitting.files import write_report
from guard.models.kind_checks import source_of
from guard.reporting import values
from guard.reporting.progress import Stages, stages

if TYPE_CHECKING:
    from guard.fitting.gated.search import Fit
    from guard.fitting.gated.token_gate import TokenGate
    from guard.fitting.steering.gate_search import GateRates
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


@dataclass(frozen=True, kw_only=True)
class GatedRun:
    """The options that every command here takes, and the run."""

    model: Model
    concept: Concept
    forget: Forget
    retain: Retain
    out: Out
    fpr: Fpr = 0.01
    near_fpr: NearFpr = 0.05
    seed: Seed = 0
    description: Description = ""
    dtype: ModelDtype = "float32"
    device: Device = "auto"
    as_json: AsJson = False

    @property
    def rates(self) -> GateRates:
        from guard.fitting.steering.gate_search import GateRates

        return GateRates(self.fpr, self.near_fpr)

    def read(self) -> tuple[Sequence[ForgetPrompt], Sequence[RetainPrompt]]:
        """The prompts; all that can be checked before the model is loaded, which takes longer."""
        require_artifact_name(self.out)
        checked_concept(self.concept, self.description)
        source_of(self.model, "language")
        return read_rows(self.forget, ForgetPrompt), read_rows(self.retain, RetainPrompt)

    def gate_of(
        self,
        chat: ChatModel,
        given: TokenGate | None,
        rows: tuple[Sequence[ForgetPrompt], Sequence[RetainPrompt]],
        progress: Stages,
    ) -> TokenGate:
        """The gate that is given, or one that is fitted to the prompts."""
        from guard.fitting.gated.token_gate import TokenGate

        if given is not None:
            return given
        return TokenGate.fitted(chat, *rows, self.rates, seed=self.seed, progress=progress)

    def save(
        self, fit: Callable[[ChatModel, TokenGate | None, Stages], Fit], gate: Path | None
    ) -> None:
        """Load the model, fit, write the artifact and print its figures; `gate` is the artifact
        whose gate is taken over."""
        from guard.artifact import Artifact
        from guard.fitting.gated import artifacts
        from guard.fitting.gated.token_gate import TokenGate
        from guard.models.chat import TransformersChat

        given_by = None if gate is None else Artifact.load(gate)
        chat = TransformersChat.load(self.model, dtype=self.dtype, device=self.device)
        given = None if given_by is None else TokenGate.of_artifact(given_by, chat)
        started = time.monotonic()
        with stages() as progress:
            fitted = fit(chat, given, progress)
        artifact = artifacts.to_artifact(
            fitted, chat, concept=self.concept, description=self.description
        )
        artifact.save(self.out)
        report = artifacts.as_json(fitted, artifact.meta, time.monotonic() - started)
        page = write_report(self.out, report, artifacts.as_page(fitted, artifact.meta))
        if self.as_json:
            print_json(report, self.out, artifact)
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
        print_written(console, self.out, page)
