"""`guard fit latents`: from a concept file and an image model to a guard of its images."""

from __future__ import annotations

import time
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


def latents(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    count: ImageCount = 200,
    phrases: Annotated[
        int,
        typer.Option(min=1, help="Phrases of the concept to generate; the first is its name."),
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

    The model generates some hundred images for the fit.
    """
    concept = read_concept(concept_file)
    require_artifact_name(out)
    if concept.ending:
        raise DataError(
            f"{concept_file}: {concept.name} is a style, which the model's images may have "
            "without a request for it: they cannot serve as images without it"
        )
    source_of(model, "images")

    from classifiers.latents import LatentRecipe
    from guard.fitting.images.latents import TrainingImages, fit_latents, require_images
    from guard.fitting.prompts.concept_prompts import folds_of
    from guard.fitting.prompts.rates import PromptRates
    from guard.models.images import ImageModel

    rates = PromptRates(fpr, near_fpr)
    prompts = folds_of(concept.first(phrases), 4 * count, folds, seed)
    require_images(prompts, count, rates)
    image_model = ImageModel.load(model, device=device)
    started = time.monotonic()
    with stages() as progress:
        fit = fit_latents(
            image_model,
            concept,
            prompts,
            TrainingImages.of(image_model, count, steps=steps, guidance=guidance, bf16=bf16),
            rates=rates,
            recipe=LatentRecipe(),
            seed=seed,
            progress=progress,
        )
    took = time.monotonic() - started
    finish(fit, concept, out, took, as_json=as_json, title="held-out images")
