"""`guard try`: a guard on one prompt, bare beside guarded, without a configuration or a server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard.artifact import Artifact
from guard.commands.fit.options import AsJson, Device, ModelDtype
from guard.commands.fit.output import print_written
from guard.commands.guards import POLICY, artifacts_of, config_of
from guard.config.kinds import Engine
from guard.config.schema import Config, ModelConfig
from guard.errors import ContentBlocked, DataError
from guard.reporting.progress import stages
from steering.methods import method_named

if TYPE_CHECKING:
    from PIL import Image

app = typer.Typer(add_completion=False)

SMALLEST = 256
"""The least height of an image that is shown."""


@app.command(
    "try", epilog='Example: guard try examples/harry-potter/steer.safetensors "Who is Ron?"'
)
def try_guard(
    guard: Annotated[
        Path,
        typer.Argument(help="An artifact, or the NAME.toml that a fit has written."),
    ],
    prompt: Annotated[str, typer.Argument(help="What to ask, or what to draw.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="An added model, a directory or a hub name; that of the guard's fit if left out."
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, max=2000, help="The length of an answer in tokens.")
    ] = 80,
    seed: Annotated[int, typer.Option(help="Of an image's noise.")] = 0,
    out: Annotated[Path, typer.Option(help="Where images go, both in one PNG.")] = Path("try.png"),
    dtype: ModelDtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Ask a model one thing, bare and under a guard, and show both answers or images."""
    paths = artifacts_of(guard)
    first = Artifact.load(paths[0]).meta
    source = model or first.model.name
    method = method_named(first.method)
    engine: Engine = "transformers" if method.kind == "language" else "diffusers"
    if method.kind != "language" and dtype != "float32":
        raise DataError(f"--dtype {dtype}: is for language models: leave it out")
    entry = ModelConfig(name="model", source=source, engine=engine, dtype=dtype, device=device)
    config = config_of(paths, entry)
    console = Console()
    if method.kind == "language":
        shown = _answers(config, prompt, tokens)
        if as_json:
            print(json.dumps(shown, indent=2, ensure_ascii=False))
            return
        table = Table("bare", "guarded")
        table.add_row(Text(shown["bare"]), Text(shown["guarded"]))
        console.print(table)
        console.print(_told(shown["guards"]), highlight=False, markup=False)
        return
    shown = _images(config, source, prompt, seed, device, out)
    if as_json:
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    console.print(_told(shown["guards"]), highlight=False, markup=False)
    print_written(console, out)


def _answers(config: Config, prompt: str, tokens: int) -> dict[str, Any]:
    from guard.models.chat import TransformersChat
    from guard.plans.language import LanguagePlans

    (entry,) = config.models
    chat = TransformersChat.configured(entry)
    plans = LanguagePlans(config, chat.model, name="model")
    plan = plans[POLICY]
    plan.require_whole()
    with stages() as progress:
        (bare,) = chat.answer([prompt], max_tokens=tokens, what="bare", progress=progress)
        (guarded,) = chat.answer(
            [prompt],
            max_tokens=tokens,
            what="guarded",
            progress=progress,
            bank=plans.bank,
            guards=plan.rows(),
        )
    guards = [
        {
            "guard": name,
            "score": reading.score,
            "threshold": reading.threshold,
            "fired": reading.fired,
        }
        for name, reading in guarded.readings.items()
    ]
    return {"prompt": prompt, "bare": bare.text, "guarded": guarded.text, "guards": guards}


def _images(
    config: Config, source: str, prompt: str, seed: int, device: str, out: Path
) -> dict[str, Any]:
    import torch
    from PIL import Image

    from guard.attach import attached
    from guard.models.pipelines import load_pipeline

    pipeline = load_pipeline(source, device=device)

    def drawn() -> Image.Image:
        generator = torch.Generator().manual_seed(seed)
        image: Image.Image = pipeline(prompt, generator=generator).images[0]
        return image.convert("RGB")

    bare = drawn()
    verdict: Any = None
    try:
        with attached(pipeline, POLICY, config=config) as handle:
            guarded = drawn()
        verdict = handle.verdicts()[0]
    except ContentBlocked as error:
        verdict, guarded = error.verdict, Image.new("RGB", bare.size, "grey")
    sheet = Image.new("RGB", (2 * bare.width, bare.height))
    sheet.paste(bare, (0, 0))
    sheet.paste(guarded, (bare.width, 0))
    if (factor := -(-SMALLEST // sheet.height)) > 1:
        sheet = sheet.resize(
            (sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST
        )
    try:
        sheet.save(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}") from error
    guards = [asdict(each) for each in verdict.guards] if verdict else []
    return {"prompt": prompt, "image": str(out), "guards": guards}


def _told(guards: Sequence[Mapping[str, Any]]) -> str:
    """The guards that fired, or the nearest to it, one line."""
    fired = [guard for guard in guards if guard["fired"]]
    if fired:
        return "; ".join(
            f"{guard['guard']} fired: {guard['score']:.3f} over {guard['threshold']:.3f}"
            for guard in fired
        )
    known = [guard for guard in guards if guard["score"] is not None and guard["threshold"]]
    if not known:
        return "no guard fired"
    nearest = max(known, key=lambda guard: guard["score"] - guard["threshold"])
    return (
        f"no guard fired; the nearest is {nearest['guard']}: {nearest['score']:.3f}, and its "
        f"threshold is {nearest['threshold']:.3f}"
    )
