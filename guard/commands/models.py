"""`guard models`: add models to the cache, list and show them."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from guard.errors import ModelError
from guard.models.recipes import RECIPES
from guard.models.sources import STEPS, add_model, added_model, added_models

app = typer.Typer(add_completion=False, help="Add, list and show models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A name that `guard models list` shows.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog="Example: guard models add smollm2")
def add(
    name: Name,
    accept_terms: Annotated[
        bool,
        typer.Option(
            "--accept-terms", help="Accept the terms of a model that has some of its own."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Download, check and convert a model into the cache; does nothing if it is there as it would
    be made now."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    visible = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not visible) as bar:
        task = bar.add_task(name, total=len(STEPS))
        model = add_model(
            name,
            accept_terms=accept_terms,
            progress=lambda step: bar.update(
                task, description=f"{name}: {step}", completed=STEPS.index(step)
            ),
        )
    if as_json:
        print(json.dumps(_facts(name), indent=2))
    else:
        print(f"{name} is ready in {model.path}")


@app.command("list", epilog="Example: guard models list")
def list_models(as_json: AsJson = False) -> None:
    """List the models that are in the cache or can be added to it."""
    names = sorted({*RECIPES, *(model.name for model in added_models())})
    models = [_facts(name) for name in names]
    if as_json:
        print(json.dumps(models, indent=2))
        return
    table = Table("name", "added", "description", "licence")
    for model in models:
        cells = (model["name"], model["path"] or "no", model["description"], model["licence"])
        table.add_row(*map(Text, cells))
    Console().print(table)


@app.command(epilog="Example: guard models show smollm2")
def show(
    name: Name,
    as_json: AsJson = False,
) -> None:
    """Show the source of a model, its hash, and its path."""
    facts = _facts(name)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        print(f"{key}: {value or 'not added'}")


def _facts(name: str) -> dict[str, Any]:
    recipe, model = RECIPES.get(name), added_model(name)
    if recipe is None and model is None:
        raise ModelError(f"no model {name!r}: `guard models list` shows what there is")
    manifest = model.manifest if model else {}
    recipe_facts = recipe.facts() if recipe else {}
    facts = {
        key: manifest.get(key) or recipe_facts.get(key, "")
        for key in ("description", "licence", "terms", "requirement", "files", "sha256")
    }
    if not facts["terms"]:
        del facts["terms"]
    added = manifest.get("added")
    return {"name": name, **facts, "added": added, "path": str(model.path) if model else None}
