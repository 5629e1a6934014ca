"""`guard fit`: from prompts and a model to an artifact with its report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from guard.commands.fit.cgce import cgce
from guard.commands.fit.irece import irece
from guard.commands.fit.latents import latents
from guard.commands.fit.output import (
    print_json,
    print_written,
    require_artifact_name,
    write_report,
)
from guard.commands.fit.screen import screen
from guard.commands.fit.training_free import nearest, negative_prompt, safe_guidance, safree, uce
from guard.data.prompts import ForgetPrompt, PairedAnswers, RetainPrompt, read_rows
from guard.errors import DataError
from guard.reporting import values
from guard.reporting.progress import stages

if TYPE_CHECKING:
    from guard.models.chat import ChatModel

app = typer.Typer(add_completion=False, help="Fit a guard.", no_args_is_help=True)


@app.callback()
def _methods() -> None:
    pass


@app.command(
    epilog="Example: guard fit steer --model smollm2 --concept character/harry-potter "
    "--forget examples/harry-potter/forget.jsonl --retain examples/harry-potter/retain.jsonl "
    "--out harry-potter.safetensors"
)
def steer(
    model: Annotated[str, typer.Option(help="An added model, a directory or a hub name.")],
    concept: Annotated[str, typer.Option(help="What must not be produced, as kind/name.")],
    forget: Annotated[Path, typer.Option(help="Forget prompts, JSON Lines.")],
    retain: Annotated[Path, typer.Option(help="Retain prompts, JSON Lines.")],
    out: Annotated[Path, typer.Option(help="Artifact to write; the report goes beside it.")],
    pairs: Annotated[
        Path | None,
        typer.Option(help="Pairs of erasure and recall answers, instead of the built-in ones."),
    ] = None,
    fpr: Annotated[
        float, typer.Option(min=1e-4, max=0.5, help="False-positive rate on far retain prompts.")
    ] = 0.01,
    near_fpr: Annotated[
        float, typer.Option(min=1e-4, max=0.5, help="False-positive rate on near misses.")
    ] = 0.05,
    recheck: Annotated[
        bool, typer.Option(help="Fit a threshold for generated tokens as well.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the samples taken while fitting.")] = 0,
    description: Annotated[str, typer.Option(help="A sentence kept in the artifact.")] = "",
    engine: Annotated[
        Literal["transformers", "vllm"],
        typer.Option(help="The engine that runs the model; vllm needs vLLM installed."),
    ] = "transformers",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1 ...; vLLM chooses the device itself.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Fit a steering guard: direction, gate, layers, strength and thresholds.

    Writes NAME.safetensors, NAME.report.json and NAME.report.html.
    """
    # before the model is loaded, which takes longer
    forget_rows, retain_rows = read_rows(forget, ForgetPrompt), read_rows(retain, RetainPrompt)
    pair_rows = read_rows(pairs, PairedAnswers) if pairs else []
    require_artifact_name(out)
    if engine == "vllm" and device != "auto":
        raise DataError(f"--device {device}: vLLM chooses the device itself: leave it out")

    from guard.fitting.steering.fit import fit_steer, to_artifact
    from guard.fitting.steering.gate_search import Rates
    from guard.fitting.steering.report import as_json as report_json
    from guard.fitting.steering.report import as_page

    rates = Rates(fpr, near_fpr)
    typer.echo(rates.check(retain_rows), err=True)
    chat = _load(model, engine, device)
    started = time.monotonic()
    with stages() as progress:
        fit = fit_steer(
            chat,
            forget_rows,
            retain_rows,
            pairs=pair_rows,
            rates=rates,
            recheck=recheck,
            seed=seed,
            progress=progress,
        )
    artifact = to_artifact(fit, chat, concept=concept, description=description)
    artifact.save(out)
    report = report_json(fit, artifact.meta, time.monotonic() - started)
    page = write_report(out, report, as_page(fit, artifact.meta))
    if as_json:
        print_json(report, out, artifact)
    else:
        _print(report, out, page)


def _load(model: str, engine: str, device: str) -> ChatModel:
    if engine == "vllm":
        from guard.models.chat_vllm import VllmChat

        return VllmChat.load(model)
    from guard.models.chat import TransformersChat

    return TransformersChat.load(model, device=device)


app.command(
    epilog="Example: guard fit cgce --model emoji "
    "--concept-file examples/emoji/guards/knife.json --out knife-cgce.safetensors"
)(cgce)
app.command(
    epilog="Example: guard fit latents --model emoji --steps 8 --guidance 3 "
    "--concept-file examples/emoji/guards/knife.json --out knife-latents.safetensors"
)(latents)
app.command(
    epilog="Example: guard fit irece --model emoji --steps 8 --guidance 3 "
    "--concept-file examples/emoji/guards/knife.json --out knife-irece.safetensors"
)(irece)
app.command(
    epilog="Example: guard fit screen --data weapons.jsonl --concept text/weapons "
    "--hold-out pyrit-advbench --out weapons.safetensors"
)(screen)

for _name, _fit in (
    ("safree", safree),
    ("nearest", nearest),
    ("safe-guidance", safe_guidance),
    ("negative-prompt", negative_prompt),
    ("uce", uce),
):
    app.command(
        _name,
        epilog=f"Example: guard fit {_name} --model emoji "
        f"--concept-file examples/emoji/guards/knife.json --out knife-{_name}.safetensors",
    )(_fit)


def _print(report: dict[str, Any], out: Path, page: Path) -> None:
    console = Console()
    trials = Table("act layers", "strength", "leak rate", "perplexity", "loops", "")
    for trial in report["trials"]:
        trials.add_row(
            ", ".join(map(str, trial["act_layers"])),
            f"{trial['strength']:g}",
            f"{trial['leak_rate']:.1%}",
            f"{trial['perplexity']:.2f}",
            f"{trial['looping']:.1%}",
            "chosen" if trial["chosen"] else "",
        )
    console.print(trials)
    console.print(values.table("validation split", report["calibration"]))
    print_written(console, out, page)
