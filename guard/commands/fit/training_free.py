"""`guard fit safree|nearest|safe-guidance|negative-prompt|uce`: guards in closed form."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from guard.commands.fit.image_output import finish
from guard.commands.fit.options import AsJson, ConceptFile, Device, Model, NearFpr, Out
from guard.commands.fit.output import require_artifact_name
from guard.data.concept import Concept, read_concept
from guard.models.kind_checks import source_of
from guard.reporting.progress import Stages, stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.images.training_free import EncodedConcept
    from guard.models.images import ImageModel

Count = Annotated[int, typer.Option(min=100, help="Unsafe prompts to make for fitting.")]
Fpr = Annotated[float, typer.Option(min=1e-4, max=0.5, help="False-positive rate on far prompts.")]
Rank = Annotated[int, typer.Option(min=1, max=64, help="Directions of the concept's subspace.")]
Phrase = Annotated[
    str | None,
    typer.Option(help="The phrase to guide away from, instead of the concept's first one."),
]
Gated = Annotated[
    bool, typer.Option("--gated", help="Act only where a linear score of the prompt is high.")
]
Seed = Annotated[int, typer.Option(help="Of the prompts that are made, and of samples.")]

Fit = Callable[["ImageModel", Concept, "EncodedConcept | None", Stages], "Artifact"]


def safree(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    rank: Rank = 8,
    sense_rank: Annotated[
        int, typer.Option(min=1, max=64, help="Of these, how many the score uses.")
    ] = 1,
    alpha: Annotated[
        float,
        typer.Option(min=0, max=1, help="How far a token must exceed the others to be projected."),
    ] = 0.0,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit a SAFREE guard: tokens that carry the concept are projected out of its subspace."""
    from guard.fitting.images.training_free import fit_safree
    from guard.fitting.prompts.rates import PromptRates

    def fit(
        image_model: ImageModel, concept: Concept, encoded: EncodedConcept | None, _progress: Stages
    ) -> Artifact:
        assert encoded is not None
        rates = PromptRates(fpr, near_fpr)
        return fit_safree(
            image_model, concept, encoded, rates, rank=rank, sense_rank=sense_rank, alpha=alpha
        )

    run = _Run(model, concept_file, out, count, seed, device, as_json)
    run.save(fit, fpr, near_fpr)


def nearest(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    rank: Rank = 8,
    anchors: Annotated[
        int, typer.Option(min=1, max=4096, help="Token states of safe prompts to keep.")
    ] = 512,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit a nearest-safe guard: tokens get the concept coordinates of their nearest safe one."""
    from guard.fitting.images.training_free import fit_nearest
    from guard.fitting.prompts.rates import PromptRates

    def fit(
        image_model: ImageModel, concept: Concept, encoded: EncodedConcept | None, _progress: Stages
    ) -> Artifact:
        assert encoded is not None
        rates = PromptRates(fpr, near_fpr)
        return fit_nearest(
            image_model, concept, encoded, rates, rank=rank, anchors=anchors, seed=seed
        )

    run = _Run(model, concept_file, out, count, seed, device, as_json)
    run.save(fit, fpr, near_fpr)


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
    run = _Run(model, concept_file, out, prompts, seed, device, as_json)
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
    run = _Run(model, concept_file, out, prompts, seed, device, as_json)
    run.save(fit, fpr, near_fpr)


def uce(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    instead: Annotated[
        str | None,
        typer.Option(
            help="What replaces the concept; without it the first of the file's `instead`, or "
            "nothing."
        ),
    ] = None,
    keep: Annotated[
        float, typer.Option(min=0, max=100, help="Weight of the prompts to preserve (λ1).")
    ] = 0.1,
    ridge: Annotated[
        float, typer.Option(min=1e-6, max=1e6, help="Weight of the model's own projections (λ2).")
    ] = 0.1,
    rank: Annotated[int, typer.Option(min=1, max=256, help="Of the overlay, at most.")] = 64,
    gated: Gated = False,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit UCE: the concept edited out of the denoiser's text projections, weights untouched."""
    from guard.fitting.images.uce import EditRequest, fit_uce
    from guard.fitting.prompts.rates import PromptRates

    def fit(
        image_model: ImageModel, concept: Concept, encoded: EncodedConcept | None, progress: Stages
    ) -> Artifact:
        replacement = next(iter(concept.instead), "") if instead is None else instead
        edit = EditRequest(replacement, keep, ridge, rank)
        return fit_uce(image_model, concept, encoded, PromptRates(fpr, near_fpr), edit, progress)

    prompts = count if gated else 0
    run = _Run(model, concept_file, out, prompts, seed, device, as_json)
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


@dataclass(frozen=True)
class _Run:
    """What every command here takes; `count` prompts are made for the gate, none with 0."""

    model: str
    concept_file: Path
    out: Path
    count: int
    seed: int
    device: str
    as_json: bool

    def save(self, fit: Fit, fpr: float, near_fpr: float) -> None:
        """Read the files, load the model, fit, write the artifact and print its figures."""
        concept = read_concept(self.concept_file)
        require_artifact_name(self.out)
        source_of(self.model, "images")

        from guard.fitting.images.training_free import encode_concept, held_out_of
        from guard.fitting.prompts.concept_prompts import prompts_of
        from guard.fitting.prompts.rates import PromptRates, require_enough
        from guard.models.images import ImageModel

        prompts = prompts_of(concept, self.count, self.seed) if self.count else []
        if self.count:
            held_out = (prompt.kind for prompt in prompts if prompt.split != "train")
            require_enough(held_out, PromptRates(fpr, near_fpr))
        image_model = ImageModel.load(self.model, device=self.device)
        encoded, started = None, time.monotonic()
        with stages() as progress:
            if self.count:
                encoded = encode_concept(image_model, concept, prompts, progress)
            artifact = fit(image_model, concept, encoded, progress)
        fitted = held_out_of(artifact, encoded)
        finish(fitted, concept, self.out, time.monotonic() - started, as_json=self.as_json)
