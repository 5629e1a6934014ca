"""`guard rebind`: bind a fitted guard to a quantised, fine-tuned or newer copy of its model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from guard.artifact import Artifact
from guard.commands.fit.output import print_json, print_written, require_artifact_name
from guard.config.schema import QUANTIZATIONS
from guard.data.prompts import ForgetPrompt, RetainPrompt, read_rows
from guard.errors import ArtifactError, DataError
from guard.models.kind_checks import source_of
from guard.reporting.progress import stages

if TYPE_CHECKING:
    from guard.models.chat import ChatModel

app = typer.Typer(add_completion=False)


@app.command(
    epilog="Example: guard rebind examples/harry-potter/steer.safetensors --model ./smollm2-int8 "
    "--out harry-potter-int8.safetensors"
)
def rebind(
    artifact: Annotated[Path, typer.Argument(help="The fitted guard.")],
    model: Annotated[
        str, typer.Option(help="The new model: an added one, a directory, a hub name.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with forget.jsonl and retain.jsonl, as of the fit; that of the artifact "
            "if left out."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Artifact to write; NAME.MODEL.safetensors if left out.")
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(help="The model of the fit, to measure how each prompt's score has changed."),
    ] = None,
    max_leaks: Annotated[
        float,
        typer.Option(min=0.001, max=0.5, help="Upper bound (95 %) on guarded answers that leak."),
    ] = 0.1,
    max_drop: Annotated[
        float,
        typer.Option(min=0.0, max=0.5, help="How far the share of prompts that fire may fall."),
    ] = 0.1,
    prompts: Annotated[
        int, typer.Option(min=10, max=10_000, help="The most prompts of a kind in a split.")
    ] = 200,
    engine: Annotated[
        Literal["transformers", "vllm"],
        typer.Option(help="The engine that runs the new model; vllm needs vLLM installed."),
    ] = "transformers",
    quantization: Annotated[
        str | None,
        typer.Option(
            help="Quantise while loading: int8 or nf4, as `quantization` of a served model; in "
            "vLLM what `vllm serve --quantization` takes."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1 ...; vLLM chooses the device itself.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of the sample of prompts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Bind a fitted steering guard to another copy of its model: quantised, fine-tuned, newer.

    Calibrates the thresholds on the validation split and judges on the test split. Refuses, with
    exit status 1, where too much leaks, too few prompts fire or too many retained answers change.
    """
    copy = "-".join(filter(None, (Path(model).name, quantization)))
    target = out or artifact.with_suffix(f".{copy}.safetensors")
    require_artifact_name(target)
    if target.resolve() == artifact.resolve():
        raise DataError(f"{target}: is the artifact itself: give another --out")
    if engine == "vllm" and device != "auto":
        raise DataError(f"--device {device}: vLLM chooses the device itself: leave it out")
    if quantization and engine != "vllm" and quantization not in QUANTIZATIONS:
        raise DataError(
            f"--quantization {quantization}: transformers quantises to "
            f"{' or '.join(QUANTIZATIONS)} here; for another one give --engine vllm, or a "
            "quantised --model"
        )
    fitted = Artifact.load(artifact)
    for each in filter(None, (model, original)):
        source_of(each, "language")
    forget, retain = _read(data or artifact.parent, given=data is not None)

    from guard.fitting.rebinding.rebind import rebind as run
    from guard.fitting.rebinding.rebind import require_prompts
    from guard.models.chat import TransformersChat

    started = time.monotonic()
    try:
        require_prompts(fitted, forget, retain)
        chat = _load(model, engine, device, quantization)
        before = TransformersChat.load(original, device=device) if original else None
        with stages() as progress:
            done = run(
                chat,
                fitted,
                forget,
                retain,
                max_leaks=max_leaks,
                max_drop=max_drop,
                prompts=prompts,
                original=before,
                seed=seed,
                progress=progress,
            )
    except ArtifactError as error:
        raise type(error)(f"{artifact}: {error.message}") from error
    report = {
        "parent": fitted.digest,
        "model": done.artifact.meta.model.model_dump(mode="json"),
        **done.figures,
        "refused": done.faults,
        "took_s": round(time.monotonic() - started, 1),
    }
    if not done.faults:
        done.artifact.save(target)
    if not as_json:
        _print(report)
    elif done.faults:
        print(json.dumps(report, indent=2))
    else:
        print_json(report, target, done.artifact)
    if done.faults:
        raise ArtifactError(
            f"{artifact}: does not hold on {model!r}: {'; '.join(done.faults)}: fit it on that "
            "model"
        )
    if not as_json:
        print_written(Console(), target)


def _read(folder: Path, *, given: bool) -> tuple[list[ForgetPrompt], list[RetainPrompt]]:
    paths = [folder / name for name in ("forget.jsonl", "retain.jsonl")]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        where = "" if given else ", beside the artifact"
        raise DataError(
            f"{folder} has no {' and no '.join(missing)}{where}: give --data, a folder with the "
            "forget and retain prompts of the fit (forget.jsonl, retain.jsonl)"
        )
    return read_rows(paths[0], ForgetPrompt), read_rows(paths[1], RetainPrompt)


def _load(model: str, engine: str, device: str, quantization: str | None) -> ChatModel:
    if engine == "vllm":
        from guard.models.chat_vllm import VllmChat

        return VllmChat.load(model, quantization=quantization)
    from guard.models.chat import TransformersChat

    return TransformersChat.load(model, device=device, quantization=quantization)


def _print(report: dict[str, Any]) -> None:
    console = Console()
    thresholds = Table("threshold", "before", "after")
    for name, values in report["thresholds"].items():
        thresholds.add_row(name, *(_number(values[when]) for when in ("before", "after")))
    console.print(thresholds)
    held_out = Table("on held-out prompts", "count", "at most (95 %)")
    for name, share in report["held_out"].items():
        if isinstance(share, dict):
            counted = f"{share['count']} of {share['of']}"
            held_out.add_row(name.replace("_", " "), counted, f"{share['at_most']:.1%}")
        else:
            held_out.add_row(
                name.replace("_", " "), "not told" if share is None else str(share), ""
            )
    console.print(held_out)
    shares = Table("prompts that fire", *report["drift"]["quantiles"])
    for name, values in report["drift"].items():
        if name.startswith("fired"):
            title = name.removeprefix("fired_").replace("_", " ")
            shares.add_row(title, *(f"{share:.1%}" for share in values.values()))
    console.print(shares)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
