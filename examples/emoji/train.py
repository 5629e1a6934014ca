"""Training of every part of the emoji model: `python -m examples.emoji.train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

Out = Annotated[Path, typer.Option(help="Folder of checkpoints, sample grids and finished parts.")]
OUT = Path(".cache/emoji")


@app.command()
def autoencoder(out: Out = OUT, steps: int = 2500) -> None:
    """Train the autoencoder: 8 minutes on two cores."""
    from examples.emoji.autoencoder import train

    out.mkdir(parents=True, exist_ok=True)
    train(out, steps)


@app.command()
def judge(which: str, out: Out = OUT, steps: int = 2500) -> None:
    """Train the judge WHICH, first or second: 5 to 10 minutes each."""
    from examples.emoji.judges import train

    out.mkdir(parents=True, exist_ok=True)
    train(out, which, steps)


@app.command()
def denoiser(
    out: Out = OUT,
    steps: int = 8000,
    decay: Annotated[
        float, typer.Option(help="Share of the steps over which the rate falls.")
    ] = 0.4,
    start: Annotated[
        Path | None, typer.Option(help="Exported weights to go on from: examples/emoji/weights.")
    ] = None,
    bf16: Annotated[
        bool, typer.Option(help="Compute in bfloat16, where the processor has it (avx512_bf16).")
    ] = False,
    tilt: Annotated[
        float, typer.Option(help="Under 1: more noisy timesteps, what is drawn; over 1: details.")
    ] = 1.0,
) -> None:
    """Train the denoiser: hours."""
    from examples.emoji.denoiser import train

    out.mkdir(parents=True, exist_ok=True)
    train(out, steps, decay, start=start, bf16=bf16, tilt=tilt)


@app.command()
def tokens(
    out: Out = OUT,
    steps: int = 12_000,
    vae: Annotated[
        Path, typer.Option(help="Folder of the autoencoder whose latents are the tokens.")
    ] = Path("examples/emoji/weights/vae"),
    weights: Annotated[
        Path | None, typer.Option(help="Folder to write; OUT/tokens where left out.")
    ] = None,
    bf16: Annotated[
        bool, typer.Option(help="Compute in bfloat16, where the processor has it (avx512_bf16).")
    ] = False,
) -> None:
    """Train the autoregressive model and write it: some 45 minutes of one core with --bf16."""
    from examples.emoji.tokens.model import train

    out.mkdir(parents=True, exist_ok=True)
    train(out, vae, weights or out / "tokens", steps, bf16=bf16)


@app.command()
def export(
    out: Out = OUT,
    weights: Annotated[
        Path | None, typer.Option(help="Folder to write; the committed one where left out.")
    ] = None,
) -> None:
    """Write the trained parts as float16 weights, and the whole pipeline to OUT/pipeline."""
    from examples.emoji.export import WEIGHTS, pipeline
    from examples.emoji.export import export as write

    write(out, weights or WEIGHTS)
    pipeline(out / "pipeline", weights or WEIGHTS)


if __name__ == "__main__":
    app()
