"""`guard profile`: compute what the guards of a model have in common, once."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from guard.commands.fit.options import AsJson, Device, ModelDtype
from guard.models.kind_checks import source_of
from guard.reporting.progress import stages

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: guard profile smollm2")
def profile(
    model: Annotated[str, typer.Argument(help="An added model, a directory or a hub name.")],
    again: Annotated[
        bool, typer.Option("--again", help="Compute it although there is one.")
    ] = False,
    dtype: ModelDtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Compute a model's profile: sensing layers, statistics of innocent prompts, directions.

    It is kept in the cache, bound to the model's weights, and used by `guard new`.
    """
    source_of(model, "language")

    from guard.fitting.erasure.profile import profile_path
    from guard.fitting.erasure.profiling import profile_of
    from guard.models.chat import TransformersChat

    chat = TransformersChat.load(model, dtype=dtype, device=device)
    path = profile_path(chat.fitted_model)
    started = time.monotonic()
    with stages() as progress:
        about = profile_of(chat, progress, again=again).about
    took = time.monotonic() - started
    facts = {
        "path": str(path),
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "model": about.model.name,
        "sense_layers": list(about.sense_layers),
        "act_layers": list(about.act_layers),
        "strength": about.strength,
        **about.figures,
        "took_s": round(took, 1),
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        print(f"{key.replace('_', ' ')}: {value}")
