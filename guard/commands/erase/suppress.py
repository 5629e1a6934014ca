"""`guard suppress`: names that a model must not speak of, thousands of them in one guard."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from guard.artifact import Artifact
from guard.commands.fit.options import AsJson, Device, ModelDtype
from guard.commands.fit.output import require_artifact_name
from guard.errors import ArtifactError, DataError
from guard.models.kind_checks import source_of
from guard.reporting.progress import stages

app = typer.Typer(add_completion=False)

MAX_BYTES = 8 * 2**20


@app.command(
    epilog='Example: guard suppress guards/people.safetensors "Anna Muster" --model smollm2'
)
def suppress(
    artifact: Annotated[
        Path, typer.Argument(help="The list, a file that is made where there is none.")
    ],
    names: Annotated[
        list[str] | None, typer.Argument(help="Names; with --remove, names or ids.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="An added model, a directory, a hub name; that of the list if left out."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--from", help="A CSV file with a column name, and one id if you like."),
    ] = None,
    id: Annotated[
        str, typer.Option(help="What verdicts call the names; made of each name if left out.")
    ] = "",
    alias: Annotated[
        bool,
        typer.Option("--alias", help="The names are further ones of ids that the list has."),
    ] = False,
    lower: Annotated[
        bool, typer.Option("--lower", help="Each name in lower case as well, as chats have it.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the names off the list.")] = False,
    fpr: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            max=0.5,
            help="False-positive rate of a new list on innocent prompts; 0.01 if left out.",
        ),
    ] = None,
    strangers_fpr: Annotated[
        float | None,
        typer.Option(min=1e-3, max=0.5, help="That on prompts about other people; 0.03."),
    ] = None,
    dtype: ModelDtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Put names on a suppression list, or take them off: one guard, however many names it has.

    A request on which the list fires is steered; the verdict says by the id which name it was. The
    rates are those of the whole list, which it keeps. Names that are added later leave the others
    as they are.
    """
    from guard.fitting.erasure.documents import checked_name

    given = [(checked_name(name), id) for name in names or ()] + _listed(file)
    if not given:
        raise DataError("no name is given: give one, or a file with --from")
    if lower:
        given += [(name.lower(), id) for name, id in given if name != name.lower()]
    require_artifact_name(artifact)
    known = Artifact.load(artifact) if artifact.exists() else None
    have = _ids(known, artifact)
    if remove:
        _report(artifact, _removed(known, artifact, [name for name, _ in given]), 0.0, as_json)
        return
    source = model or (known.meta.model.name if known else None)
    if source is None:
        raise DataError("the list is new: name its model with --model")
    source_of(source, "language")
    if known and (fpr or strangers_fpr):
        raise DataError(f"{artifact}: keeps the rates that it was made with: leave them out")

    from guard.fitting.suppression.fit import ListRates, require_rates
    from guard.fitting.suppression.lists import Entry, SuppressionLists

    entries = [Entry.of(name, id) for name, id in dict(given).items()]
    if alias and (lost := [entry.id for entry in entries if entry.id not in have]):
        raise DataError(f"{artifact}: has no entry {lost[0]!r}, whose further name this would be")
    rates = ListRates(fpr or ListRates.far, strangers_fpr or ListRates.strangers)
    require_rates(rates)
    there = [entry.id for entry in entries if not alias and entry.id in have]
    if fresh := [entry for entry in entries if alias or entry.id not in have]:
        from guard.models.chat import TransformersChat

        chat = TransformersChat.load(source, dtype=dtype, device=device)
        with stages() as progress:
            lists = SuppressionLists(chat, progress)
            started = time.monotonic()
            if known is None:
                made = lists.made(fresh, f"names/{artifact.stem}", rates)
            else:
                made = lists.grown(known, fresh)
        made.save(artifact)
        took_s = time.monotonic() - started
        _report(artifact, made, took_s, as_json, added=[entry.id for entry in fresh], there=there)
        return
    assert known is not None
    _report(artifact, known, 0.0, as_json, there=there)


def _listed(file: Path | None) -> list[tuple[str, str]]:
    """The names of a CSV file with their ids. Raises DataError naming a line."""
    from guard.fitting.erasure.documents import checked_name

    if file is None:
        return []
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"{file}: is larger than {MAX_BYTES // 2**20} MiB: give parts of it")
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            if "name" not in (reader.fieldnames or ()):
                raise DataError(f"{file}: line 1: has no column `name`: write it as the first line")
            found = []
            for row in reader:
                try:
                    found.append((checked_name(row["name"] or ""), (row.get("id") or "").strip()))
                except DataError as error:
                    raise DataError(f"{file}: line {reader.line_num}: {error.message}") from error
            return found
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: is no CSV file of UTF-8 text: {error}") from error


def _ids(known: Artifact | None, path: Path) -> set[str]:
    from guard.fitting.suppression.lists import entries_of

    try:
        return set() if known is None else set(entries_of(known))
    except DataError as error:
        raise DataError(f"{path}: {error.message}") from error


def _removed(known: Artifact | None, path: Path, names: list[str]) -> Artifact:
    from guard.fitting.steering.artifacts import file_name
    from guard.fitting.suppression.lists import entries_of, shrunk

    if known is None:
        raise ArtifactError(f"{path}: does not exist: there is no list to take names off")
    try:
        have = set(entries_of(known))
        made = shrunk(known, [name if name in have else file_name(name) for name in names])
    except DataError as error:
        raise DataError(f"{path}: {error.message}") from error
    made.save(path)
    return made


def _report(
    path: Path,
    made: Artifact,
    took_s: float,
    as_json: bool,
    *,
    added: Sequence[str] = (),
    there: Sequence[str] = (),
) -> None:
    """Print the list as it is now; `there` are ids that it had before, whose names were not
    added."""
    from guard.fitting.suppression.lists import entries_of

    settings = made.meta.settings
    facts: dict[str, Any] = {
        "list": str(path),
        "names": len(entries_of(made)),
        "added": [*added],
        "on the list already": [*there],
        "threshold": settings["threshold"],
        "recheck": settings["recheck"],
        **{key: value for key, value in made.meta.calibration.items() if key != "names"},
        "took_s": round(took_s, 2),
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    facts["added"] = len(added)
    facts["on the list already"] = ", ".join(there) or "none"
    for key, value in facts.items():
        print(f"{key.replace('_', ' ')}: {value}")
