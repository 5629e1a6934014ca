"""`guard import`: a published eraser's checkpoint or adapter as a guard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from guard.commands.fit.images.run import Count, GatedUnlessAsked, Seed
from guard.commands.fit.options import AsJson, Device, ModelDtype, Out
from guard.errors import DataError
from guard.models.kind_checks import kind_of_model

app = typer.Typer(add_completion=False)

_NAMED = 5
"""The most names of weights in a line; the artifact has all of them."""
_IMAGE_RATES, _LANGUAGE_RATES = (0.005, 0.03), (0.01, 0.05)


@app.command(
    epilog="Examples: guard import esd-knife.safetensors --base emoji "
    "--concept-file examples/emoji/guards/knife.json --out knife-esd.safetensors; "
    "guard import erased-lora --base smollm2 --concept character/harry-potter "
    "--gate examples/harry-potter/steer.safetensors --out harry-potter-lora.safetensors"
)
def import_checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A folder of diffusers, transformers or PEFT, or a .safetensors file: whole "
            "weights, of some layers or all, or a LoRA of kohya-ss or diffusers."
        ),
    ],
    base: Annotated[
        str,
        typer.Option(
            help="The model that it was made from: an added one, a directory, a hub name."
        ),
    ],
    out: Out,
    concept_file: Annotated[
        Path | None, typer.Option(help="The concept in words, JSON; for models of images.")
    ] = None,
    concept: Annotated[
        str | None,
        typer.Option(help="What must not be produced, as kind/name; for language models."),
    ] = None,
    forget: Annotated[
        Path | None,
        typer.Option(
            help="Forget prompts, JSON Lines, for the gate of a language model and the cut."
        ),
    ] = None,
    retain: Annotated[
        Path | None, typer.Option(help="Retain prompts, JSON Lines, for the same.")
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option(help="Artifact of a guard of this language model, whose gate is taken over."),
    ] = None,
    as_read: Annotated[
        bool,
        typer.Option(
            "--as-read",
            help="Leave the prompt as the bare language model has read it, in place of reading it "
            "again where the gate fires.",
        ),
    ] = False,
    component: Annotated[
        str | None,
        typer.Option(
            help="The network that it is for, as the pipeline names it, where its names leave that "
            "open."
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            help="Of each layer, at most: for whole weights 64, of language models 16, if left "
            "out; all for adapters.",
        ),
    ] = None,
    least_share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Refuse an overlay with a layer that keeps less of its change."
        ),
    ] = 0.9,
    prompts: Annotated[
        int,
        typer.Option(
            min=2, max=4096, help="Images, or prompts, that show what each layer's change does."
        ),
    ] = 128,
    ungated: Annotated[
        bool, typer.Option("--ungated", help="Act on every request, as the checkpoint does.")
    ] = False,
    transport: Annotated[
        bool,
        typer.Option(
            "--transport",
            help="Let the strength follow the prompt's score, as SPM's facilitated transport does; "
            "for models of images.",
        ),
    ] = False,
    count: Count = 400,
    fpr: Annotated[
        float | None,
        typer.Option(
            min=1e-4,
            max=0.5,
            help="False-positive rate on far prompts; 0.005, of language models 0.01.",
        ),
    ] = None,
    near_fpr: Annotated[
        float | None,
        typer.Option(
            min=1e-4,
            max=0.5,
            help="False-positive rate on hard negatives; 0.03, of language models 0.05.",
        ),
    ] = None,
    seed: Seed = 0,
    dtype: ModelDtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Make a guard of what a fine-tuned copy changes in its model: low-rank overlays behind a gate.

    Pickles are refused. Weights that cannot be served (norms, biases, embeddings) are left out and
    named.
    """
    from guard.fitting.overlays.weights import weight_files

    own: dict[str, object]
    if not checkpoint.is_dir():  # before a model is loaded
        weight_files(checkpoint)
    if kind_of_model(base) == "images":
        from guard.commands.importing.images import import_images
        from guard.fitting.images.imported import ImportRequest

        own = {"--concept": concept, "--forget": forget, "--retain": retain, "--gate": gate}
        own |= {"--as-read": as_read or None, "--dtype": None if dtype == "float32" else dtype}
        _require_none(own, "language models")
        if concept_file is None:
            raise DataError("--concept-file: is needed for a model of images")
        far, near = _rates(fpr, near_fpr, _IMAGE_RATES)
        run = GatedUnlessAsked(
            model=base,
            concept_file=concept_file,
            out=out,
            count=count,
            fpr=far,
            near_fpr=near,
            seed=seed,
            device=device,
            as_json=as_json,
            ungated=ungated,
        )
        if transport and ungated:
            raise DataError("--transport: follows the score of a gate: leave --ungated out")
        request = ImportRequest(checkpoint, component, rank, prompts, least_share, transport)
        artifact = import_images(run, request)
    else:
        from guard.commands.importing.language import LanguageRun
        from guard.fitting.gated.imported import LanguageImport

        own = {"--concept-file": concept_file, "--component": component}
        _require_none(own | {"--transport": transport or None}, "models of images")
        if concept is None:
            raise DataError("--concept: is needed for a language model, as kind/name")
        rates = _rates(fpr, near_fpr, _LANGUAGE_RATES)
        wanted = (base, concept, out, forget, retain, gate, ungated)
        taken = LanguageImport(checkpoint, rank, least_share, rereads=not as_read)
        artifact = LanguageRun(*wanted, *rates, seed, dtype, device, as_json).save(taken, prompts)
    dropped: Any = artifact.meta.settings["dropped"]
    if not as_json:
        console = Console()
        for kind, names in dropped.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            line = f"left out: {len(names)} {kind}: {', '.join(names[:_NAMED])}{more}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _require_none(options: dict[str, object], kind: str) -> None:
    """Raise DataError for options that are given, though they are for another kind of model."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise DataError(f"{', '.join(given)}: for {kind}, and the base is none: leave them out")


def _rates(
    far: float | None, near: float | None, defaults: tuple[float, float]
) -> tuple[float, float]:
    """Those that are given, or the defaults of a kind of model."""
    return defaults[0] if far is None else far, defaults[1] if near is None else near
