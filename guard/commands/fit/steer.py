"""`guard fit steer`: prompts to forget and to retain, and a model, to a steering guard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from guard.commands.fit.output import (
    print_json,
    print_written,
    require_artifact_name,
    write_report,
)
from guard.data.portrait_rows import with_portraits
from guard.data.prompts import ForgetPrompt, PairedAnswers, RetainPrompt, read_rows
from guard.errors import DataError
from guard.reporting import values
from guard.reporting.progress import stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.models.chat import ChatModel


_NONE = "warning: no forget prompt of the validation split fires that asks by "
_UNCAUGHT = {
    "text": f"{_NONE}text alone: fit those rows by themselves, with --tokens text, and put both "
    "guards into the policy",
    "image": f"{_NONE}image: fit those rows by themselves, with --tokens image, and put both "
    "guards into the policy",
    "both": f"{_NONE}image and name: add such prompts to the train split",
}
"""What is said where a guard does not act on a way of asking, by that way."""


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
    portraits: Annotated[
        Path | None,
        typer.Option(
            help="Folder of portraits, one folder for each subject: forget prompts that name "
            "their subject are asked by portrait as well."
        ),
    ] = None,
    each: Annotated[
        Literal["set", "subject"],
        typer.Option(help="One guard for all forget prompts, or one for each subject."),
    ] = "set",
    tokens: Annotated[
        Literal["all", "text", "image", "last"] | None,
        typer.Option(
            help="The tokens that the gate scores; those with the highest recall on the "
            "validation split if left out."
        ),
    ] = None,
    parts: Annotated[
        Literal["text", "visual", "both"] | None,
        typer.Option(
            help="Parts of the direction; both if left out and forget prompts have images."
        ),
    ] = None,
    epsilon: Annotated[
        float,
        typer.Option(min=0.0, max=255.0, help="Grey levels by which an image is perturbed."),
    ] = 8.0,
    perturb_steps: Annotated[
        int, typer.Option(min=0, max=1000, help="Gradient steps by which an image is perturbed.")
    ] = 20,
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

    Writes NAME.safetensors, NAME.report.json and NAME.report.html; with --each subject
    NAME-SUBJECT.safetensors for each subject, and NAME.toml with a policy of all of them.
    """
    # before the model is loaded, which takes longer
    forget_rows, retain_rows = read_rows(forget, ForgetPrompt), read_rows(retain, RetainPrompt)
    pair_rows = read_rows(pairs, PairedAnswers) if pairs else []
    if portraits is not None:
        forget_rows = with_portraits(forget_rows, portraits)
    require_artifact_name(out)
    if engine == "vllm" and device != "auto":
        raise DataError(f"--device {device}: vLLM chooses the device itself: leave it out")

    from guard.fitting.steering.artifacts import to_artifact, to_artifacts
    from guard.fitting.steering.fit import fit_steer
    from guard.fitting.steering.gate_search import Rates
    from guard.fitting.steering.perturbation import Perturbation
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
            tokens=tokens,
            parts=parts,
            perturbation=Perturbation(epsilon=epsilon, steps=perturb_steps),
            each_subject=each == "subject",
            seed=seed,
            progress=progress,
        )
    if each == "subject":
        artifacts = to_artifacts(fit, chat, concept=concept, description=description)
        artifact = next(iter(artifacts.values()))
        written = _save_all(artifacts, out)
    else:
        artifact = to_artifact(fit, chat, concept=concept, description=description)
        artifact.save(out)
        written = [out]
    about = artifact.meta.model_copy(update={"concept": concept})
    report = report_json(fit, about, time.monotonic() - started)
    for kind, share in fit.calibration.get("forget_fired_by_kind", {}).items():
        if not share:
            typer.echo(_UNCAUGHT[kind], err=True)
    page = write_report(out, report, as_page(fit, about))
    if as_json:
        print_json(report, written[0], artifact)
    else:
        _print(report, [*written, page])


def _save_all(artifacts: Mapping[str, Artifact], out: Path) -> list[Path]:
    """Write artifacts as NAME-SUBJECT.safetensors, and what a configuration needs to list all of
    them as NAME.toml. Returns the paths."""
    paths, lines = [], []
    for name, artifact in artifacts.items():
        path = out.with_name(f"{out.stem}-{name}.safetensors")
        artifact.save(path)
        paths.append(path)
        lines += ["[[guards]]", f'name = "{path.stem}"', f'artifact = "{path.name}"', ""]
    listed = ",\n".join(f'    "{path.stem}"' for path in paths)
    lines += [f"[policies.{out.stem}]", f"guards = [\n{listed},\n]", ""]
    policy = out.with_suffix(".toml")
    policy.write_text("\n".join(lines), encoding="utf-8")
    return [*paths, policy]


def _load(model: str, engine: str, device: str) -> ChatModel:
    if engine == "vllm":
        from guard.models.chat_vllm import VllmChat

        return VllmChat.load(model)
    from guard.models.chat import TransformersChat

    return TransformersChat.load(model, device=device)


def _print(report: Mapping[str, Any], written: list[Path]) -> None:
    console = Console()
    if "gates_tried" in report:
        gates = Table("gate layers", "tokens", "caught", "far fired", "near fired")
        for gate in report["gates_tried"]:
            shares = (f"{gate[key]:.1%}" for key in ("recall", "far_fired", "near_fired"))
            gates.add_row(", ".join(map(str, gate["layers"])), gate["tokens"], *shares)
        console.print(gates)
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
    print_written(console, *written)
