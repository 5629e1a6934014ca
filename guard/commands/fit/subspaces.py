"""`guard fit ablation` and `guard fit kif`: a subspace of the residual stream that is taken out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.commands.fit.gated import (
    AsJson,
    Concept,
    Description,
    FittedGate,
    Forget,
    Fpr,
    NearFpr,
    Out,
    Retain,
    Seed,
    read,
    run,
)
from guard.commands.fit.options import Device, Model, ModelDtype
from guard.reporting.progress import Stages

if TYPE_CHECKING:
    from guard.fitting.gated.search import Fit
    from guard.fitting.gated.token_gate import TokenGate
    from guard.models.chat import ChatModel

Rank = Annotated[int, typer.Option(min=1, max=4, help="Directions that are taken out.")]


def ablation(
    model: Model,
    concept: Concept,
    forget: Forget,
    retain: Retain,
    out: Out,
    gate: FittedGate = None,
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

    rows = read(forget, retain, out, concept, description, model)
    run(fit, model, dtype, device, gate, concept, description, out, as_json)


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

    rows = read(forget, retain, out, concept, description, model)
    run(fit, model, dtype, device, gate, concept, description, out, as_json)
