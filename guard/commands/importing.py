"""`guard import`: a published eraser's checkpoint or adapter as a guard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from guard.commands.fit.images.run import Count, FitRun, Fpr, Seed
from guard.commands.fit.options import AsJson, ConceptFile, Device, NearFpr, Out
from guard.data.concept import Concept
from guard.reporting.progress import Stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.images.training_free import EncodedConcept
    from guard.models.images import ImageModel

app = typer.Typer(add_completion=False)

_NAMED = 5
"""The most names of weights in a line; the artifact has all of them."""


@app.command(
    epilog="Example: guard import esd-knife.safetensors --base emoji "
    "--concept-file examples/emoji/guards/knife.json --out knife-esd.safetensors"
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
    concept_file: ConceptFile,
    out: Out,
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
            help="Of each layer, at most: 64 for whole weights if left out, all for adapters.",
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
        typer.Option(min=2, max=4096, help="Images that show what each layer's change does."),
    ] = 128,
    ungated: Annotated[
        bool, typer.Option("--ungated", help="Act on every image, as the checkpoint does.")
    ] = False,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Make a guard of what a fine-tuned copy changes in its model: low-rank overlays behind a gate.

    Pickles are refused. Weights that cannot be served (norms, biases, embeddings) are left out and
    named.
    """
    from guard.fitting.images.imported import ImportRequest, fit_import
    from guard.fitting.overlays.weights import weight_files
    from guard.fitting.prompts.rates import PromptRates

    if not checkpoint.is_dir():  # before a model is loaded
        weight_files(checkpoint)
    request = ImportRequest(checkpoint, component, rank, prompts, least_share)

    def fit(
        image_model: ImageModel, concept: Concept, encoded: EncodedConcept | None, progress: Stages
    ) -> Artifact:
        rates = PromptRates(fpr, near_fpr)
        return fit_import(image_model, concept, encoded, rates, request, progress)

    run = FitRun(base, concept_file, out, 0 if ungated else count, seed, device, as_json)
    dropped: Any = run.save(fit, fpr, near_fpr).meta.settings["dropped"]
    if not as_json:
        console = Console()
        for kind, names in dropped.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            line = f"left out: {len(names)} {kind}: {', '.join(names[:_NAMED])}{more}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
