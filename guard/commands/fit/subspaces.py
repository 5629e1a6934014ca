"""`guard fit ablation` and `guard fit kif`: a subspace of the residual stream that is taken out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.commands.fit.gated import FittedGate, GatedRun
from guard.reporting.progress import Stages

if TYPE_CHECKING:
    from guard.fitting.gated.search import Fit
    from guard.fitting.gated.token_gate import TokenGate
    from guard.models.chat import ChatModel

Rank = Annotated[int, typer.Option(min=1, max=4, help="Directions that are taken out.")]


def ablation(
    run: GatedRun,
    gate: FittedGate = None,
    rank: Rank = 1,
) -> None:
    """Fit a directional ablation: the direction of a subject, taken out of the residual stream
    where a prompt's gate fires.

    Writes NAME.safetensors, NAME.report.json and NAME.report.html.
    """

    def fit(chat: ChatModel, given: TokenGate | None, progress: Stages) -> Fit:
        from guard.fitting.gated.fit import fit_ablation

        taken = run.gate_of(chat, given, rows, progress)
        return fit_ablation(chat, *rows, taken, rank=rank, seed=run.seed, progress=progress)

    rows = run.read()
    run.save(fit, gate)


def kif(
    run: GatedRun,
    gate: Annotated[
        Path | None,
        typer.Option(
            help="Artifact of a guard of this model, whose gate is taken over; the signature's own "
            "score decides if left out."
        ),
    ] = None,
    rank: Rank = 1,
) -> None:
    """Fit a guard of KIF: the activation signature of a subject, suppressed while it is active.

    Writes NAME.safetensors, NAME.report.json and NAME.report.html.
    """

    def fit(chat: ChatModel, given: TokenGate | None, progress: Stages) -> Fit:
        from guard.fitting.gated.fit import fit_kif

        return fit_kif(chat, *rows, given, run.rates, rank=rank, seed=run.seed, progress=progress)

    rows = run.read()
    run.save(fit, gate)
