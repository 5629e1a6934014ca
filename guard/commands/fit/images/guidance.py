"""`guard fit safe-guidance|negative-prompt`: guards of the guidance, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from guard.commands.fit.images.run import Count, Fit, FitRun, Fpr, Gated, Seed
from guard.commands.fit.options import AsJson, ConceptFile, Device, Model, NearFpr, Out
from guard.data.concept import Concept
from guard.reporting.progress import Stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.images.training_free import EncodedConcept
    from guard.models.images import ImageModel

Phrase = Annotated[
    str | None,
    typer.Option(help="The phrase to guide away from, instead of the concept's first one."),
]


def safe_guidance(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    preset: Annotated[
        Literal["weak", "medium", "strong", "max"], typer.Option(help="The paper's configurations.")
    ] = "medium",
    phrase: Phrase = None,
    gated: Gated = False,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit safe latent diffusion: guidance away from the concept while an image is generated."""
    fit = _guide("safe-guidance", phrase, fpr, near_fpr, preset)
    prompts = count if gated else 0
    run = FitRun(model, concept_file, out, prompts, seed, device, as_json)
    run.save(fit, fpr, near_fpr)


def negative_prompt(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    phrase: Phrase = None,
    gated: Gated = False,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit a negative prompt: the concept in place of the empty prompt."""
    fit = _guide("negative-prompt", phrase, fpr, near_fpr, None)
    prompts = count if gated else 0
    run = FitRun(model, concept_file, out, prompts, seed, device, as_json)
    run.save(fit, fpr, near_fpr)


def _guide(method: str, phrase: str | None, fpr: float, near_fpr: float, preset: str | None) -> Fit:
    from guard.fitting.images.training_free import fit_guide
    from guard.fitting.prompts.rates import PromptRates

    def fit(
        image_model: ImageModel, concept: Concept, encoded: EncodedConcept | None, _progress: Stages
    ) -> Artifact:
        return fit_guide(
            image_model,
            concept,
            encoded,
            PromptRates(fpr, near_fpr),
            method=method,
            phrase=phrase or concept.phrases.train[0],
            preset=preset,
        )

    return fit
