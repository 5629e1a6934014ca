"""`guard fit latents`: from a concept file and an image model to a guard of its images."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer
from rich.console import Console

from guard.commands.fit.options import (
    AsJson,
    Bf16,
    ConceptFile,
    Device,
    Folds,
    Guidance,
    ImageCount,
    ImageFpr,
    ImageSeed,
    Model,
    NearFpr,
    Out,
)
from guard.data.concept import Concept, read_concept
from guard.errors import DataError
from guard.reporting import values
from guard.reporting.progress import stages


def latents(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    count: ImageCount = 200,
    phrases: Annotated[
        int,
        typer.Option(
            min=1, help="Of the concept's phrases, so many are drawn; the first is its name."
        ),
    ] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Of each image; the model's own default.")
    ] = None,
    guidance: Guidance = None,
    fpr: ImageFpr = 0.005,
    near_fpr: NearFpr = 0.05,
    folds: Folds = 4,
    bf16: Bf16 = False,
    seed: ImageSeed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit a classifier of finished latents: does the image show the concept.

    The model draws some hundred images of its own for it.
    """
    concept = read_concept(concept_file)
    if out.suffix != ".safetensors":
        raise DataError(f"{out}: an artifact's name ends in .safetensors")
    if concept.ending:
        raise DataError(
            f"{concept_file}: {concept.name} is a style, which the model draws where none is asked "
            "for too: its own images cannot teach what is without it"
        )

    from classifiers.latents import LatentRecipe
    from guard.fitting.images.latents import TrainingImages, fit_latents
    from guard.fitting.prompts.concept_prompts import folds_of
    from guard.models.images import ImageModel

    painter = ImageModel.load(model, device=device)
    default_steps, default_guidance = painter.family.defaults
    started = time.monotonic()
    with stages() as progress:
        fit = fit_latents(
            painter,
            concept,
            folds_of(_first(concept, phrases), 4 * count, folds, seed),
            TrainingImages(
                count=count,
                steps=default_steps if steps is None else steps,
                guidance=default_guidance if guidance is None else guidance,
                bf16=bf16,
            ),
            fpr=fpr,
            near_fpr=near_fpr,
            recipe=LatentRecipe(),
            seed=seed,
            progress=progress,
        )
    fit.artifact.save(out)
    meta = fit.artifact.meta
    if as_json:
        told = {
            "method": meta.method,
            "concept": meta.concept,
            "settings": meta.settings,
            "calibration": meta.calibration,
            "seconds": round(time.monotonic() - started, 1),
            "artifact": str(out),
            "digest": fit.artifact.digest,
        }
        print(json.dumps(told, indent=2))
        return
    console = Console()
    console.print(values.table("held-out images", meta.calibration))
    console.print(f"wrote {out}", markup=False, highlight=False, soft_wrap=True)


def _first(concept: Concept, count: int) -> Concept:
    """The concept with the first of its phrases only."""
    few = concept.phrases.model_copy(
        update={"train": concept.phrases.train[:count], "validation": ()}
    )
    return concept.model_copy(update={"phrases": few})
