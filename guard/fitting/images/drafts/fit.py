"""All guards of a drafted concept that can be fitted on a pipeline, each by its own fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from classifiers.calibration import prompts_needed
from classifiers.latents import LatentRecipe
from classifiers.training import Recipe
from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.errors import DataError, GuardError
from guard.fitting.images.cgce import Descent, fit_cgce
from guard.fitting.images.irece import fit_irece
from guard.fitting.images.latents import TrainingImages, fit_latents, sure_prompts
from guard.fitting.prompts.concept_prompts import LabelledPrompt, folds_of
from guard.fitting.prompts.rates import Calibrated, PromptRates
from guard.fitting.prompts.search import Search
from guard.models.images import ImageModel
from guard.reporting.progress import Stages

FOLDS = 4
PROMPTS, IMAGES = 600, 80
"""Unsafe prompts, and images with the concept: a fit by itself has more, and takes longer."""
SEARCH = Search(rounds=2, count=150, vocabulary=2000)
INSPECTIONS, TRIALS, CLASSIFIER_STEPS = 5, 12, 300
FEWEST_STEPS = 8


@dataclass(frozen=True)
class Fits:
    """The artifacts by method, and why the other methods have none."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def fit_all(
    image_model: ImageModel,
    concept: Concept,
    progress: Stages,
    *,
    rates: PromptRates,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
) -> Fits:
    """Fit CGCE, a classifier of latents and IRECE, with `steps` for each image of the fits: a
    sixth of the pipeline's own if left out.

    Raises DataError if none can be fitted.
    """
    # where a rate is low, enough held-out prompts and images for it
    far, near = prompts_needed(rates.far), prompts_needed(rates.near)
    prompts, count = max(PROMPTS, 2 * far, 4 * near), max(IMAGES, 2 * far // 3, 3 * near)
    images = TrainingImages.of(
        image_model,
        count,
        steps=few_steps(image_model) if steps is None else steps,
        guidance=guidance,
    )

    @cache
    def chosen() -> list[LabelledPrompt]:
        # for both classifiers of images: choosing takes as long as a fit
        of_images = folds_of(concept.first(1), 4 * count, FOLDS, seed)
        return sure_prompts(image_model, concept, of_images, images, seed, progress)

    methods: dict[str, Callable[[], Calibrated]] = {
        "cgce": lambda: fit_cgce(
            image_model,
            concept,
            folds_of(concept, prompts, FOLDS, seed),
            rates=rates,
            recipe=Recipe(seed=seed),
            descent=Descent(),
            search=SEARCH,
            progress=progress,
        ),
        "latents": lambda: fit_latents(
            image_model,
            concept,
            chosen(),
            images,
            rates=rates,
            recipe=LatentRecipe(steps=CLASSIFIER_STEPS),
            seed=seed,
            progress=progress,
            sure=True,
        ),
        "irece": lambda: fit_irece(
            image_model,
            concept,
            chosen(),
            images,
            inspections=INSPECTIONS,
            trials=TRIALS,
            rates=rates,
            recipe=LatentRecipe(steps=CLASSIFIER_STEPS),
            seed=seed,
            progress=progress,
            sure=True,
        ),
    }
    fits = Fits()
    for method, fit in methods.items():
        try:
            fits.artifacts[method] = fit().artifact
        except (GuardError, ValueError, RuntimeError) as error:
            # what a pipeline cannot give is raised by many libraries
            fits.failed[method] = str(error).splitlines()[0] if str(error) else repr(error)
    if not fits.artifacts:
        why = "; ".join(f"{method}: {reason}" for method, reason in fits.failed.items())
        raise DataError(f"no guard of {concept.name} can be fitted on {image_model.name}: {why}")
    return fits


def few_steps(image_model: ImageModel) -> int:
    """A sixth of the pipeline's own steps, but no fewer than an image needs."""
    own, _ = image_model.family.defaults
    return min(own, max(FEWEST_STEPS, own // 6))
