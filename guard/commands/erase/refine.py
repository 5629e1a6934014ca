"""`guard refine`: what operators complain of mends the guards of a concept."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from guard.commands.erase.new import print_files
from guard.commands.fit.options import AsJson, Device, ModelDtype
from guard.commands.fit.output import require_writable
from guard.commands.guards import artifacts_of
from guard.errors import DataError
from guard.models.kind_checks import source_of
from guard.reporting.progress import stages

app = typer.Typer(add_completion=False)

MOST_CHARACTERS = 2_000


@app.command(
    epilog='Example: guard refine guards/frankenstein.toml --leak "Who made the creature?" '
    '--innocent "Who wrote Dracula?"'
)
def refine(
    guards: Annotated[Path, typer.Argument(help="The NAME.toml that `guard new` has written.")],
    leak: Annotated[
        list[str] | None,
        typer.Option(help="A prompt that got through; can be given several times."),
    ] = None,
    innocent: Annotated[
        list[str] | None,
        typer.Option(help="A prompt that was wrongly stopped; can be given several times."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="An added model, a directory, a hub name; that of the fit if left out."),
    ] = None,
    dtype: ModelDtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Mend the guards of a concept by prompts that got through, or were wrongly stopped.

    A leak gets a gate of its own; innocent prompts become near misses, and the thresholds are over
    their scores. Complaints add up from one call to the next. All is fitted and written anew.
    """
    leaks, spared = (
        _checked(texts or [], kind) for texts, kind in ((leak, "--leak"), (innocent, "--innocent"))
    )
    if not leaks and not spared:
        raise DataError("nothing to mend: give a prompt with --leak, or one with --innocent")
    if both := sorted({*leaks} & {*spared}):
        raise DataError(f"{both[0]!r} is given as a leak and as innocent: choose one")

    from guard.artifact import Artifact
    from guard.fitting.erasure.forget import fitted, save
    from guard.fitting.erasure.profiling import profile_of
    from guard.fitting.erasure.report import belonging_of
    from guard.models.chat import TransformersChat

    belonging, rates = belonging_of(guards.with_name(f"{guards.stem}.report.json"))
    fitted_on = Artifact.load(artifacts_of(guards)[0]).meta.model
    belonging = replace(
        belonging,
        leaks=_joined(belonging.leaks, leaks, spared),
        innocent=_joined(belonging.innocent, spared, leaks),
    )
    require_writable(guards)
    source_of(model or fitted_on.name, "language")
    chat = TransformersChat.load(model or fitted_on.name, dtype=dtype, device=device)
    if chat.fitted_model.fingerprint != fitted_on.fingerprint:
        raise DataError(
            f"{chat.name} has other weights than the model of these guards: make them anew with "
            "`guard new`"
        )
    with stages() as progress:
        profile = profile_of(chat, progress)
        started = time.monotonic()
        forgotten = fitted(chat, profile, belonging, progress, rates=rates, started=started)
    print_files(
        save(chat, forgotten, guards.with_name(f"{guards.stem}.safetensors")), as_json=as_json
    )


def _checked(texts: list[str], option: str) -> list[str]:
    for text in texts:
        if not text.strip():
            raise DataError(f"{option} is empty: give the prompt")
        if len(text) > MOST_CHARACTERS:
            raise DataError(
                f"{option} has {len(text)} characters, at most {MOST_CHARACTERS} are taken: give "
                "the part that matters"
            )
    return texts


def _joined(known: tuple[str, ...], more: list[str], other: list[str]) -> tuple[str, ...]:
    """Earlier complaints and new ones; a new one of the other kind takes an earlier one back."""
    return tuple(text for text in dict.fromkeys((*known, *more)) if text not in other)
