"""`guard fit irece`: from a concept file and an image model to a guard that acts on latents."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from guard.commands.fit.images.output import finish
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
from guard.commands.fit.output import require_artifact_name
from guard.data.concept import read_concept
from guard.errors import DataError
from guard.models.kind_checks import source_of
from guard.reporting.progress import stages

_TABLES = {
    "windows": "first inspection",
    "places": "localization: heads added to the votes, the heads alone, sizes of the mask",
    "breaking": "replacement and first inspection",
}


def irece(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            "--pictures",
            help="Real images to train on too, with the concept and without it: JSON Lines of "
            "image, concept and kept.",
        ),
    ] = None,
    count: ImageCount = 200,
    steps: Annotated[
        int | None, typer.Option(min=2, max=1000, help="Of each image; the model's own default.")
    ] = None,
    guidance: Guidance = None,
    looks: Annotated[
        int, typer.Option(min=1, max=100, help="Inspections of each image, at most.")
    ] = 5,
    trials: Annotated[
        int, typer.Option(min=8, max=256, help="Images for each replacement that is tried.")
    ] = 24,
    fpr: ImageFpr = 0.005,
    near_fpr: NearFpr = 0.1,
    hidden: Annotated[
        float,
        typer.Option(
            min=0,
            max=2,
            help="Train the classifiers also on latents that were moved by up to this much, in "
            "deviations, to hide the concept, as an attacker does who inverts an image through "
            "the guard. 0 leaves that out, and takes a third of the time.",
        ),
    ] = 0.3,
    folds: Folds = 4,
    bf16: Bf16 = False,
    seed: ImageSeed = 0,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A draft in a fraction of the time: as with --hidden 0, --looks 3 and --trials 8.",
        ),
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit an IRECE guard: find the concept in the latents of an unfinished image, break it there.

    The model generates some hundred images for the fit.
    """
    concept = read_concept(concept_file)
    require_artifact_name(out)
    if concept.ending:
        raise DataError(
            f"{concept_file}: {concept.name} is a style, which has no position in an image: fit "
            "another method"
        )
    source_of(model, "images")

    from classifiers.latents import LatentRecipe
    from guard.fitting.images.irece import fit_irece
    from guard.fitting.images.latents import TrainingImages, require_images
    from guard.fitting.images.reference_images import read_reference_images, reference_rows
    from guard.fitting.prompts.concept_prompts import folds_of
    from guard.fitting.prompts.rates import PromptRates
    from guard.models.images import ImageModel

    if quick:
        hidden, looks, trials = 0.0, min(looks, 3), min(trials, 8)
    rates = PromptRates(fpr, near_fpr)
    prompts = folds_of(concept.first(1), 4 * count, folds, seed)
    shown = reference_rows(concept, images)[1] if images else []
    require_images(prompts, count, rates, given=shown.count(False))
    image_model = ImageModel.load(model, device=device)
    started = time.monotonic()
    with stages() as progress:
        fit = fit_irece(
            image_model,
            concept,
            prompts,
            TrainingImages.of(image_model, count, steps=steps, guidance=guidance, bf16=bf16),
            inspections=looks,
            trials=trials,
            rates=rates,
            recipe=LatentRecipe(steps=800, attack_radius=hidden, attack_steps=3)
            if hidden
            else LatentRecipe(),
            seed=seed,
            progress=progress,
            references=read_reference_images(image_model, concept, images) if images else None,
        )
    took = time.monotonic() - started
    finish(
        fit,
        concept,
        out,
        took,
        as_json=as_json,
        title="held-out images",
        trials=_TABLES,
        quick=quick,
    )
