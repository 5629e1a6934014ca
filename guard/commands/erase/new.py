"""`guard new`: from the name of a concept to guards that keep a model from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from guard.commands.fit.options import AsJson, Device, Guidance, Model, ModelDtype
from guard.commands.fit.output import print_judgement, print_written, require_writable
from guard.config.policy_schema import MAX_MESSAGE_CHARS
from guard.errors import DataError
from guard.models.kind_checks import kind_of_model, source_of
from guard.reporting.progress import stages

if TYPE_CHECKING:
    from guard.fitting.erasure.forget import Files

app = typer.Typer(add_completion=False)


@app.command(epilog='Example: guard new "Frankenstein" --model smollm2 --out guards/frankenstein')
def new(
    concept: Annotated[str, typer.Argument(help="The name of what must go.")],
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(help="Artifacts to write, OUT-NAME.safetensors; guards/CONCEPT if left out."),
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name of it; can be given several times.")
    ] = None,
    about: Annotated[
        list[Path] | None,
        typer.Option(
            help="A document about it, a file of text; for an image model a list of phrases, one a "
            "line, or a concept file. Can be given several times."
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(help="Language models: texts that an answer leaks by, one a line."),
    ] = None,
    instead: Annotated[
        str,
        typer.Option(help="Language models: the answer where a guard fires; steered if left out."),
    ] = "",
    fpr: Annotated[
        float,
        typer.Option(min=1e-3, max=0.5, help="False-positive rate on prompts about other topics."),
    ] = 0.01,
    near_fpr: Annotated[
        float,
        typer.Option(min=1e-3, max=0.5, help="False-positive rate on the nearest topics."),
    ] = 0.1,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A draft in a fraction of the time: gates for the first few things that belong to "
            "it, tried on fewer prompts.",
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            min=2, max=1000, help="Image models: of each image of the fits; a sixth of its own."
        ),
    ] = None,
    guidance: Guidance = None,
    judge: Annotated[
        Path | None,
        typer.Option(help="Image models: an ONNX file that recognises concepts in images."),
    ] = None,
    dtype: ModelDtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Make guards of a concept from its name, and from what is said about it where that is given.

    Of a language model: the names that belong to it come from documents and from the model itself;
    each has a gate of its own. What the model's guards have in common is computed once
    (`guard profile`). Of an image model: phrases come from WordNet, the model says which of them
    mean the concept (KIND/NAME picks a meaning: food/orange), and CGCE, latents and IRECE are
    fitted. Writes artifacts, a policy of all of them, and a report of what they caught and missed.
    """
    if kind_of_model(model) == "images":
        for option, text in (("--facts", facts), ("--instead", instead)):
            if text:
                raise _for_language(option, model)
        if dtype != "float32":
            raise _for_language("--dtype", model)
        from guard.commands.erase.new_images import new_images
        from guard.fitting.prompts.rates import PromptRates

        new_images(
            concept,
            model,
            out,
            aliases=alias or (),
            about=about or (),
            rates=PromptRates(fpr, near_fpr),
            steps=steps,
            guidance=guidance,
            judge=judge,
            device=device,
            as_json=as_json,
        )
        return
    for option, value in (("--steps", steps), ("--guidance", guidance), ("--judge", judge)):
        if value is not None:
            raise DataError(f"{option} is for image models, and {model!r} is none: leave it out")
    # before the model is loaded, which takes longer
    from guard.fitting.erasure.documents import checked_name, read_documents, read_facts

    name = checked_name(concept)
    aliases = [checked_name(each) for each in alias or ()]
    documents = read_documents(about or ())
    leaked_by = read_facts(facts)
    if len(instead) > MAX_MESSAGE_CHARS:
        raise DataError(f"--instead has {len(instead)} characters, at most {MAX_MESSAGE_CHARS}")
    source_of(model, "language")

    from guard.fitting.erasure.erase import require_rates
    from guard.fitting.erasure.forget import forget, save
    from guard.fitting.steering.artifacts import file_name
    from guard.fitting.steering.gate_search import GateRates
    from guard.models.chat import TransformersChat

    base = out or Path("guards") / file_name(name)
    # as the others that write beside an artifact take it: a dot in the name is no suffix then
    whole = base.with_name(f"{base.name.removesuffix('.safetensors')}.safetensors")
    require_writable(whole)
    require_rates(GateRates(fpr, near_fpr))
    chat = TransformersChat.load(model, dtype=dtype, device=device)
    with stages() as progress:
        forgotten = forget(
            chat,
            name,
            aliases,
            documents,
            progress,
            rates=GateRates(fpr, near_fpr),
            draft=quick,
            facts=leaked_by,
            instead=instead,
        )
    print_files(save(chat, forgotten, whole), as_json=as_json)


def _for_language(option: str, model: str) -> DataError:
    return DataError(f"{option} is for language models, and {model!r} is none: leave it out")


def print_files(files: Files, *, as_json: bool) -> None:
    """Print the figures of a concept's guards, and which files were written."""
    if as_json:
        print(json.dumps(files.report, indent=2))
        return
    console = Console()
    for figure, value in files.report["figures"].items():
        console.print(f"{figure.replace('_', ' ')}: {value}", highlight=False, markup=False)
    print_judgement(console, files.report)
    print_written(console, *files.artifacts, files.policy, files.names, files.page)
