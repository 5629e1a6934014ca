"""`guard fit sparse`: features of a sparse autoencoder out of the residual stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.commands.fit.gated import FittedGate, GatedRun
from guard.commands.fit.output import require_writable
from guard.errors import DataError
from guard.reporting.progress import Stages

if TYPE_CHECKING:
    from guard.fitting.gated.search import Fit
    from guard.fitting.gated.token_gate import TokenGate
    from guard.fitting.sparse.training import Training
    from guard.models.chat import ChatModel

Autoencoder = Annotated[
    Path | None,
    typer.Option(
        help="File of sparse autoencoders of this model, for any number of guards. It is trained "
        "and written where there is none; beside the artifact if left out."
    ),
]
Erased = Annotated[
    int, typer.Option(min=1, max=4096, help="Features that are taken out of a place, at most.")
]
Features = Annotated[
    int | None,
    typer.Option(
        min=8,
        max=131_072,
        help="Of an autoencoder that is trained, 1024 if left out. One that is there must have "
        "been trained with this setting and the next three, where they are given.",
    ),
]
Active = Annotated[
    int | None,
    typer.Option(min=1, max=4096, help="Of these, how many are active on a state, 16 if left out."),
]
Updates = Annotated[
    int | None,
    typer.Option(min=1, max=1_000_000, help="Of an autoencoder's training, 600 if left out."),
]
Rate = Annotated[
    float | None,
    typer.Option(min=1e-7, max=1.0, help="Adam's rate in that training, 0.001 if left out."),
]


def sparse(
    run: GatedRun,
    gate: FittedGate = None,
    autoencoder: Autoencoder = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Decoder layers to act after, separated by commas; those of the autoencoder's "
            "file, or 50, 65 and 80 % of the depth, if left out."
        ),
    ] = None,
    erased: Erased = 32,
    features: Features = None,
    active: Active = None,
    updates: Updates = None,
    rate: Rate = None,
) -> None:
    """Fit a guard of sparse features: those that tell a subject, taken out of the residual stream
    where a prompt's gate fires.

    Writes NAME.safetensors, NAME.report.json and NAME.report.html.
    """
    places = None if layers is None else _layers(layers)
    given_file = autoencoder_of(autoencoder, run.out)
    training, given_settings = training_of(features, active, updates, rate, run.seed)

    def fit(chat: ChatModel, given: TokenGate | None, progress: Stages) -> Fit:
        from guard.fitting.sparse.language import SparseFit, fit_sparse

        request = SparseFit(given_file, erased, places, training, given_settings)
        taken = run.gate_of(chat, given, rows, progress)
        return fit_sparse(chat, *rows, taken, request, seed=run.seed, progress=progress)

    rows = run.read()
    run.save(fit, gate)


def training_of(
    features: int | None, active: int | None, updates: int | None, rate: float | None, seed: int
) -> tuple[Training, frozenset[str]]:
    """The settings of a training from options, and the names of those that are given. Raises
    DataError for settings that contradict each other."""
    from guard.fitting.sparse.training import Training

    options = {"features": features, "active": active, "updates": updates, "rate": rate}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    training = replace(Training(seed=seed), **given)
    training.check()
    return training, frozenset(given)


def autoencoder_of(given: Path | None, out: Path) -> Path:
    """The file of the autoencoders: the one that is given, or one beside the artifact `out`. Raises
    DataError for a name that no such file has."""
    path = out.with_suffix(".autoencoder.safetensors") if given is None else given
    if path.suffix != ".safetensors":
        raise DataError(f"--autoencoder {path}: the name of such a file ends in .safetensors")
    if path.resolve() == out.resolve():
        raise DataError(f"--autoencoder {path}: is the artifact that --out names: give another one")
    if not path.exists():
        require_writable(path)
    return path


def _layers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise DataError(f"--layers {text}: give numbers of layers, as in 15,20,24")
    return tuple(int(part) for part in parts)
