"""`guard fit safree|nearest|safe-guidance|negative-prompt|uce`: guards in closed form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from guard.commands.fit.options import AsJson, ConceptFile, Device, Model, NearFpr, Out
from guard.data.concept import Concept, read_concept
from guard.errors import DataError
from guard.reporting import values
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
    typer.Option(help="What to guide away from, in place of the concept's first phrase."),
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
        int, typer.Option(min=1, max=64, help="Of these, the ones that a prompt is judged by.")
    ] = 1,
    alpha: Annotated[
        float, typer.Option(min=0, max=1, help="How far a token must stand out to be projected.")
    ] = 0.0,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit a SAFREE guard: tokens that carry the concept are projected out of its subspace."""
    from guard.fitting.images.training_free import Rates, fit_safree

    def fit(
        painter: ImageModel, concept: Concept, read: EncodedConcept | None, _progress: Stages
    ) -> Artifact:
        assert read is not None
        rates = Rates(fpr, near_fpr)
        return fit_safree(
            painter, concept, read, rates, rank=rank, sense_rank=sense_rank, alpha=alpha
        )

    _run(fit, model, concept_file, out, count=count, seed=seed, device=device, as_json=as_json)


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
    from guard.fitting.images.training_free import Rates, fit_nearest

    def fit(
        painter: ImageModel, concept: Concept, read: EncodedConcept | None, _progress: Stages
    ) -> Artifact:
        assert read is not None
        rates = Rates(fpr, near_fpr)
        return fit_nearest(painter, concept, read, rates, rank=rank, anchors=anchors, seed=seed)

    _run(fit, model, concept_file, out, count=count, seed=seed, device=device, as_json=as_json)


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
    """Fit safe latent diffusion: guidance away from the concept while an image is drawn."""
    fit = _guide("safe-guidance", phrase, fpr, near_fpr, preset)
    _run(
        fit,
        model,
        concept_file,
        out,
        count=count if gated else 0,
        seed=seed,
        device=device,
        as_json=as_json,
    )


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
    _run(
        fit,
        model,
        concept_file,
        out,
        count=count if gated else 0,
        seed=seed,
        device=device,
        as_json=as_json,
    )


def uce(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    instead: Annotated[
        str | None,
        typer.Option(
            help="What to draw in the concept's place; the first of the file's `instead`, or "
            "nothing, where it is not given."
        ),
    ] = None,
    keep: Annotated[
        float, typer.Option(min=0, max=100, help="Weight of what is to stay as it is (λ1).")
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
    from guard.fitting.images.training_free import Rates
    from guard.fitting.images.uce import EditRequest, fit_uce

    def fit(
        painter: ImageModel, concept: Concept, read: EncodedConcept | None, progress: Stages
    ) -> Artifact:
        said = next(iter(concept.instead), "") if instead is None else instead
        edit = EditRequest(said, keep, ridge, rank)
        return fit_uce(painter, concept, read, Rates(fpr, near_fpr), edit, progress)

    _run(
        fit,
        model,
        concept_file,
        out,
        count=count if gated else 0,
        seed=seed,
        device=device,
        as_json=as_json,
    )


def _guide(method: str, phrase: str | None, fpr: float, near_fpr: float, preset: str | None) -> Fit:
    from guard.fitting.images.training_free import Rates, fit_guide

    def fit(
        painter: ImageModel, concept: Concept, read: EncodedConcept | None, _progress: Stages
    ) -> Artifact:
        return fit_guide(
            painter,
            concept,
            read,
            Rates(fpr, near_fpr),
            method=method,
            phrase=phrase or concept.phrases.train[0],
            preset=preset,
        )

    return fit


def _run(
    fit: Fit,
    model: str,
    concept_file: Path,
    out: Path,
    *,
    count: int,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Read the files, load the model, fit, and say what came of it; count 0 reads no prompts."""
    concept = read_concept(concept_file)
    if out.suffix != ".safetensors":
        raise DataError(f"{out}: an artifact's name ends in .safetensors")

    from guard.fitting.images.training_free import read_prompts
    from guard.fitting.prompts.concept_prompts import prompts_of
    from guard.models.images import ImageModel

    painter = ImageModel.load(model, device=device)
    read = None
    with stages() as progress:
        if count:
            read = read_prompts(painter, concept, prompts_of(concept, count, seed), progress)
        artifact = fit(painter, concept, read, progress)
    artifact.save(out)
    meta = artifact.meta
    told: dict[str, Any] = {
        "method": meta.method,
        "concept": meta.concept,
        "settings": meta.settings,
        "calibration": meta.calibration,
        "artifact": str(out),
        "digest": artifact.digest,
    }
    if as_json:
        print(json.dumps(told, indent=2))
        return
    console = Console()
    console.print(values.table("", meta.settings | meta.calibration))
    console.print(f"wrote {out}", markup=False, highlight=False, soft_wrap=True)
