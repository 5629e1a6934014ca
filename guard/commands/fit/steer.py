"""`guard fit steer`: prompts to forget and to retain, and a model, to a steering guard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from guard.commands.fit.options import Model, ModelDtype
from guard.commands.fit.output import (
    checked_concept,
    print_judgement,
    print_written,
    require_artifact_name,
    with_artifact,
)
from guard.data.portrait_rows import with_portraits
from guard.data.prompts import ForgetPrompt, PairedAnswers, RetainPrompt, read_rows
from guard.errors import DataError
from guard.fitting.files import save_policy, write_report
from guard.models.kind_checks import source_of
from guard.reporting import values
from guard.reporting.progress import stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.steering.fit import SteerFit
    from guard.fitting.steering.gate_search import GateRates
    from guard.models.chat import ChatModel
    from steering.hidden.bank import Tokens


_NONE = "warning: no forget prompt of the validation split fires that asks by "
_UNCAUGHT = {
    "text": f"{_NONE}text alone: fit those rows by themselves, with --apart",
    "image": f"{_NONE}image: fit those rows by themselves, with --apart",
    "both": f"{_NONE}image and name: add such prompts to the train split",
}
"""What is said where a guard does not act on a way of asking, by that way."""


def steer(
    model: Model,
    concept: Annotated[str, typer.Option(help="What must not be produced, as kind/name.")],
    forget: Annotated[Path, typer.Option(help="Forget prompts, JSON Lines.")],
    out: Annotated[Path, typer.Option(help="Artifact to write; the report goes beside it.")],
    retain: Annotated[
        Path | None,
        typer.Option(
            help="Retain prompts, JSON Lines. Where they are too few, or left out, those of the "
            "retain bank are used."
        ),
    ] = None,
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
    apart: Annotated[
        bool,
        typer.Option(
            "--apart",
            help="Fit forget prompts with images and those of text alone apart: guards of image "
            "tokens and guards of text tokens, each with these false-positive rates.",
        ),
    ] = False,
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
    dtype: ModelDtype = "float32",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A draft in a fraction of the time: fewer prompts and trials, and no check of "
            "generated tokens.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Fit a steering guard: direction, gate, layers, strength and thresholds.

    Writes NAME.safetensors, NAME.report.json and NAME.report.html; with --each subject
    NAME-SUBJECT.safetensors for each subject, and NAME.toml with a policy of all of them. With
    --apart there are NAME-image and NAME-text of each, and one policy.
    """
    # before the model is loaded, which takes longer
    forget_rows = read_rows(forget, ForgetPrompt)
    retain_rows = read_rows(retain, RetainPrompt) if retain else []
    pair_rows = read_rows(pairs, PairedAnswers) if pairs else []
    if portraits is not None:
        forget_rows = with_portraits(forget_rows, portraits)
    require_artifact_name(out)
    checked_concept(concept, description)
    source_of(model, "language")
    if engine == "vllm" and device != "auto":
        raise DataError(f"--device {device}: vLLM chooses the device itself: leave it out")
    if engine == "vllm" and dtype != "float32":
        raise DataError(f"--dtype {dtype}: vLLM takes that of its own settings: leave it out")
    sets = [_Set(forget_rows, retain_rows, tokens, out)]
    if apart:
        sets = _apart(sets[0])

    from guard.fitting.steering.artifacts import require_file_names
    from guard.fitting.steering.bank_rows import check_with_bank, with_bank
    from guard.fitting.steering.effort import DRAFT, WHOLE
    from guard.fitting.steering.fit import fit_steer, require_rows
    from guard.fitting.steering.gate_search import GateRates
    from guard.fitting.steering.perturbation import Perturbation

    rates = GateRates(fpr, near_fpr)
    about = _About(concept, description, each == "subject")
    for one in sets:
        require_rows(
            one.forget,
            one.retain,
            tokens=one.tokens,
            each_subject=about.each_subject,
            scores_texts=engine == "transformers",
        )
        check = check_with_bank if one.takes_bank else _check_alone
        typer.echo(check(one.forget, one.retain, rates), err=True)
    if about.each_subject:
        require_file_names(row.subject for row in forget_rows)
    chat = _load(model, engine, dtype, device)
    fitted = []
    for one in sets:
        started = time.monotonic()
        with stages() as progress:
            kept = one.retain
            if one.takes_bank:
                kept = with_bank(chat, one.forget, one.retain, rates, progress)
                if more := len(kept) - len(one.retain):
                    typer.echo(f"{more} retain prompts are of the bank", err=True)
            fit = fit_steer(
                chat,
                one.forget,
                kept,
                pairs=pair_rows,
                rates=rates,
                recheck=recheck,
                tokens=one.tokens,
                parts=parts if any(row.images for row in one.forget) or not apart else None,
                perturbation=Perturbation(epsilon=epsilon, steps=perturb_steps),
                each_subject=about.each_subject,
                effort=DRAFT if quick else WHOLE,
                seed=seed,
                progress=progress,
            )
        fitted.append(_written(fit, chat, about, one.out, time.monotonic() - started))
    paths = [path for result in fitted for path in result.artifacts]
    if apart or about.each_subject:
        paths.append(save_policy(paths, out))
    if as_json:
        found = [result.as_json for result in fitted]
        typer.echo(json.dumps(found if apart else found[0], indent=2))
        return
    console = Console()
    for result in fitted:
        _print(console, result.report)
    print_written(console, *paths, *(result.page for result in fitted))


class _About(NamedTuple):
    """What the artifacts of a command are of."""

    concept: str
    description: str
    each_subject: bool


class _Set(NamedTuple):
    """Rows that are fitted together, the tokens their gates score, and the artifact's path."""

    forget: Sequence[ForgetPrompt]
    retain: Sequence[RetainPrompt]
    tokens: Tokens | None
    out: Path

    @property
    def takes_bank(self) -> bool:
        """Whether prompts of the retain bank, which have no images, can stand beside the rows."""
        return self.tokens != "image"


class _Fitted(NamedTuple):
    """What one fit has written."""

    artifacts: Mapping[Path, Artifact]
    report: Mapping[str, Any]
    page: Path

    @property
    def as_json(self) -> dict[str, Any]:
        """The report with the path and the digest of the first artifact."""
        return with_artifact(self.report, *next(iter(self.artifacts.items())))


def _apart(whole: _Set) -> list[_Set]:
    """The rows with images and those without. Text is in every request, images are not: the rows
    to retain are all of them for the one, and those with images for the other."""
    forget, retain, tokens, out = whole
    if tokens is not None:
        raise DataError("--apart scores the tokens of images and of text: leave out --tokens")
    seen, named = [r for r in forget if r.images], [r for r in forget if not r.images]
    if not seen or not named:
        raise DataError(
            "--apart: needs forget prompts with images and forget prompts of text alone: leave it "
            "out, or see --portraits"
        )
    shown = [row for row in retain if row.images]
    return [
        _Set(seen, shown, "image", out.with_name(f"{out.stem}-image.safetensors")),
        _Set(named, retain, "text", out.with_name(f"{out.stem}-text.safetensors")),
    ]


def _check_alone(
    _forget: Sequence[ForgetPrompt], retain: Sequence[RetainPrompt], rates: GateRates
) -> str:
    from guard.fitting.steering.fit import require_retain

    return require_retain(retain, rates)


def _written(fit: SteerFit, chat: ChatModel, about: _About, out: Path, took_s: float) -> _Fitted:
    """Write the artifacts of a fit and its report; warn of ways of asking on which none acts."""
    from guard.fitting.steering.artifacts import to_artifact, to_artifacts
    from guard.fitting.steering.report import as_json, as_page

    what = {"concept": about.concept, "description": about.description}
    if about.each_subject:
        artifacts = {
            out.with_name(f"{out.stem}-{name}.safetensors"): artifact
            for name, artifact in to_artifacts(fit, chat, **what).items()
        }
    else:
        artifacts = {out: to_artifact(fit, chat, **what)}
    for path, artifact in artifacts.items():
        artifact.save(path)
    meta = next(iter(artifacts.values())).meta.model_copy(update={"concept": about.concept})
    report = as_json(fit, meta, took_s)
    for kind, share in fit.calibration.get("forget_fired_by_kind", {}).items():
        if not share:
            typer.echo(_UNCAUGHT[kind], err=True)
    return _Fitted(artifacts, report, write_report(out, report, as_page(fit, meta)))


def _load(model: str, engine: str, dtype: str, device: str) -> ChatModel:
    if engine == "vllm":
        from guard.models.chat_vllm import VllmChat

        return VllmChat.load(model)
    from guard.models.chat import TransformersChat

    return TransformersChat.load(model, dtype=dtype, device=device)


def _print(console: Console, report: Mapping[str, Any]) -> None:
    if "gates_tried" in report:
        gates = Table("gate layers", "tokens", "caught", "far fired", "near fired")
        for gate in report["gates_tried"]:
            shares = (f"{gate[key]:.1%}" for key in ("recall", "far_fired", "near_fired"))
            gates.add_row(", ".join(map(str, gate["layers"])), gate["tokens"], *shares)
        console.print(gates)
    facts = ("facts recognised", "by chance") if "recognised" in report["trials"][0] else ()
    trials = Table("act layers", "strength", "leak rate", "perplexity", "loops", *facts, "")
    for trial in report["trials"]:
        trials.add_row(
            ", ".join(map(str, trial["act_layers"])),
            f"{trial['strength']:g}",
            f"{trial['leak_rate']:.1%}",
            f"{trial['perplexity']:.2f}",
            f"{trial['looping']:.1%}",
            *(f"{trial[key]:.1%}" for key in ("recognised", "chance") if key in trial),
            "chosen" if trial["chosen"] else "",
        )
    console.print(trials)
    console.print(values.table("validation split", report["calibration"]))
    print_judgement(console, report)
