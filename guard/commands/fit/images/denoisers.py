"""`guard fit spm|co-erasing|doco|ant|trce-stage2|all-but-one`: denoisers trained as low-rank
overlays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from guard.commands.fit.images.run import Count, FitRun, Fpr, Seed
from guard.commands.fit.images.training import (
    Penalty,
    Project,
    Rank,
    Rate,
    Steps,
    Ungated,
    Updates,
    image_settings,
    kept_beside,
    save_resumable,
    training_of,
)
from guard.commands.fit.options import AsJson, ConceptFile, Device, Guidance, Model, NearFpr, Out
from guard.data.concept import Concept, read_concept
from guard.errors import DataError
from guard.fitting.images.trained.denoisers.kinds import KINDS, kinds_in
from guard.reporting.progress import Stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.images.trained.denoisers.fit import DenoiserEraser
    from guard.fitting.images.trained.denoisers.trajectories import TrajectorySettings
    from guard.fitting.images.training_free import EncodedConcept
    from guard.fitting.overlays.training import Training
    from guard.fitting.prompts.rates import PromptRates
    from guard.models.images import ImageModel

Layers = Annotated[
    str | None,
    typer.Option(
        help=f"Kinds of layers to train in place of the publication's, separated by commas, of: "
        f"{', '.join(KINDS)}."
    ),
]
Eta = Annotated[
    float, typer.Option(min=0, max=100, help="How far to lead away from the concept (η).")
]
Batch = Annotated[int, typer.Option(min=1, max=256, help="Latents in an update.")]
Refresh = Annotated[
    int, typer.Option(min=1, max=100_000, help="Updates after which new images are begun.")
]
Images = Annotated[int, typer.Option(min=1, max=1024, help="Images of the model's to train on.")]
Instead = Annotated[
    str | None,
    typer.Option(
        help="What is in a prompt's twin the concept's place, a thing that the model draws as "
        "itself; without it the first of the file's `instead`, or of its `replacements`."
    ),
]


def spm(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    surrogate: Annotated[str, typer.Option(help="What the concept becomes (c₀).")] = "",
    eta: Eta = 1.0,
    keep: Annotated[float, typer.Option(min=0, max=1e6, help="Weight of the anchors (λ).")] = 1000,
    anchors: Annotated[
        Literal["prompts", "random"],
        typer.Option(help="Prompts without the concept, or Gaussian states, as published."),
    ] = "prompts",
    transport: Annotated[
        bool | None,
        typer.Option(
            "--transport/--no-transport",
            help="Let the strength follow the score of the gate, as it does where there is one.",
        ),
    ] = None,
    batch: Batch = 4,
    images: Images = 8,
    steps: Steps = 12,
    guidance: Guidance = None,
    refresh: Refresh = 20,
    layers: Layers = None,
    rank: Rank = 1,
    updates: Updates = 300,
    rate: Rate = 1e-3,
    penalty: Penalty = 0.0,
    project: Project = True,
    ungated: Ungated = False,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit SPM: one-dimensional adapters that erase, anchored where they must not act."""
    from guard.fitting.images.trained.denoisers.spm import Spm

    if transport and ungated:
        raise DataError("--transport: follows the score of a gate: leave --ungated out")
    made = _trajectories(images, steps, guidance, refresh)
    eraser = Spm(surrogate, eta, keep, anchors, batch, made)
    run = FitRun(
        model, concept_file, out, 0 if ungated else count, fpr, near_fpr, seed, device, as_json
    )
    training = training_of(rank, updates, rate, seed, penalty, project)
    _save(run, lambda _concept: eraser, training, layers, transport=transport is not False)


def co_erasing(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    eta: Eta = 1.0,
    words: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the updates that erase words alone.")
    ] = 0.5,
    tokens: Annotated[
        int, typer.Option(min=1, max=64, help="States that stand for the concept's pictures.")
    ] = 4,
    token_updates: Annotated[
        int, typer.Option(min=1, max=10_000, help="Updates in which these are learned.")
    ] = 40,
    batch: Batch = 4,
    images: Images = 8,
    steps: Steps = 12,
    guidance: Guidance = None,
    refresh: Refresh = 20,
    layers: Layers = None,
    rank: Rank = 8,
    updates: Updates = 300,
    rate: Rate = 1e-3,
    penalty: Penalty = 0.0,
    ungated: Ungated = False,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit Co-Erasing: the concept's words, and then words beside pictures of it."""
    from guard.fitting.images.trained.denoisers.co_erasing import CoErasing
    from guard.fitting.images.trained.denoisers.picture_tokens import PictureSettings

    pictures = image_settings(2 * images, steps, guidance, seed)
    learned = PictureSettings(tokens, token_updates, batch=batch, images=pictures)
    eraser = CoErasing(eta, words, batch, learned, _trajectories(images, steps, guidance, refresh))
    run = FitRun(
        model, concept_file, out, 0 if ungated else count, fpr, near_fpr, seed, device, as_json
    )
    _save(run, lambda _concept: eraser, training_of(rank, updates, rate, seed, penalty), layers)


def doco(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    instead: Instead = None,
    keep: Annotated[
        float, typer.Option(min=0, max=1e6, help="Weight of the anchor's own images.")
    ] = 1.0,
    warmup: Annotated[
        int, typer.Option(min=0, max=100_000, help="Updates of the discriminator before the first.")
    ] = 30,
    discriminator_rate: Annotated[
        float, typer.Option(min=1e-7, max=1.0, help="Adam's rate for the discriminator.")
    ] = 5e-4,
    batch: Batch = 4,
    images: Images = 16,
    steps: Steps = 12,
    guidance: Guidance = None,
    layers: Layers = None,
    rank: Rank = 8,
    updates: Updates = 300,
    rate: Rate = 1e-3,
    penalty: Penalty = 0.0,
    project: Project = True,
    ungated: Ungated = False,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit DoCo: images of the concept pass a discriminator as images of an anchor."""
    from guard.fitting.images.trained.denoisers.doco import DoCo

    pictures = image_settings(images, steps, guidance, seed)

    def eraser(concept: Concept) -> DenoiserEraser:
        return DoCo(_twin(concept, instead), keep, warmup, discriminator_rate, batch, pictures)

    run = FitRun(
        model, concept_file, out, 0 if ungated else count, fpr, near_fpr, seed, device, as_json
    )
    _save(run, eraser, training_of(rank, updates, rate, seed, penalty, project), layers)


def ant(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    eta: Eta = 1.0,
    early: Annotated[
        float, typer.Option(min=0, max=1e6, help="Weight of the early steps, which stay (α1).")
    ] = 1.0,
    unconditional: Annotated[
        float, typer.Option(min=0, max=1e6, help="Weight of the empty prompt, which stays (α2).")
    ] = 0.5,
    boundary: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1e6,
            help="The noise level (noise over signal) between early and late; 6.2 if left out.",
        ),
    ] = None,
    batch: Batch = 2,
    images: Images = 8,
    steps: Steps = 12,
    guidance: Guidance = None,
    refresh: Refresh = 20,
    layers: Layers = None,
    rank: Rank = 8,
    updates: Updates = 300,
    rate: Rate = 1e-3,
    penalty: Penalty = 0.0,
    project: Project = True,
    ungated: Ungated = False,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit ANT, trained: the concept reversed at middle and late steps, early ones as they are."""
    from guard.fitting.images.trained.denoisers.ant import Ant

    made = _trajectories(images, steps, guidance, refresh)
    at = Ant.boundary if boundary is None else boundary
    eraser = Ant(eta, early, unconditional, at, batch, made)
    run = FitRun(
        model, concept_file, out, 0 if ungated else count, fpr, near_fpr, seed, device, as_json
    )
    training = training_of(rank, updates, rate, seed, penalty, project)
    _save(run, lambda _concept: eraser, training, layers)


def trce_stage2(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    instead: Instead = None,
    weight: Annotated[
        float, typer.Option(min=0, max=1000, help="How far both sides are guided apart.")
    ] = 15.0,
    margin: Annotated[
        float, typer.Option(min=0, max=1e6, help="By how much the twin's side is to be nearer.")
    ] = 0.01,
    keep: Annotated[
        float, typer.Option(min=0, max=1e6, help="Weight of the empty prompt, which stays.")
    ] = 100.0,
    batch: Batch = 4,
    images: Images = 16,
    steps: Steps = 12,
    guidance: Guidance = None,
    layers: Layers = None,
    rank: Rank = 8,
    updates: Updates = 300,
    rate: Rate = 1e-3,
    penalty: Penalty = 0.0,
    project: Project = True,
    ungated: Ungated = False,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit TRCE's second stage: early predictions pushed to the prompt's safe twin."""
    from guard.fitting.images.trained.denoisers.trce import TrceStage2

    made = _trajectories(images, steps, guidance, 1)

    def eraser(concept: Concept) -> DenoiserEraser:
        twin = _twin(concept, instead)
        return TrceStage2(twin, weight, margin, keep, batch=batch, trajectories=made)

    run = FitRun(
        model, concept_file, out, 0 if ungated else count, fpr, near_fpr, seed, device, as_json
    )
    _save(run, eraser, training_of(rank, updates, rate, seed, penalty, project), layers)


def all_but_one(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    instead: Instead = None,
    keep: Annotated[
        float, typer.Option(min=0, max=1e6, help="Weight of the empty prompt, which stays (λ).")
    ] = 1.0,
    batch: Batch = 4,
    images: Images = 8,
    steps: Steps = 12,
    guidance: Guidance = None,
    refresh: Refresh = 20,
    layers: Layers = None,
    rank: Rank = 8,
    updates: Updates = 300,
    rate: Rate = 1e-3,
    penalty: Penalty = 0.0,
    project: Project = True,
    ungated: Ungated = False,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit All but One, trained: the concept's guidance becomes that of an alternative."""
    from guard.fitting.images.trained.denoisers.all_but_one import AllButOne

    made = _trajectories(images, steps, guidance, refresh)

    def eraser(concept: Concept) -> DenoiserEraser:
        return AllButOne(_twin(concept, instead), keep, batch, made)

    run = FitRun(
        model, concept_file, out, 0 if ungated else count, fpr, near_fpr, seed, device, as_json
    )
    _save(run, eraser, training_of(rank, updates, rate, seed, penalty, project), layers)


def _trajectories(
    count: int, steps: int, guidance: float | None, refresh: int
) -> TrajectorySettings:
    from guard.fitting.images.trained.denoisers.trajectories import TrajectorySettings

    return TrajectorySettings(count, steps, guidance, refresh)


def _twin(concept: Concept, instead: str | None) -> str:
    return next(text for text in (instead, *concept.instead, *concept.replacements) if text)


def _save(
    run: FitRun,
    eraser: Callable[[Concept], DenoiserEraser],
    training: Training,
    layers: str | None,
    *,
    transport: bool = False,
) -> None:
    """Train, write the artifact and print its figures."""
    from guard.fitting.images.trained.denoisers.fit import fit_denoiser

    kinds = None if layers is None else kinds_in(layers)
    chosen = eraser(read_concept(run.concept_file))

    def fit(
        image_model: ImageModel,
        concept: Concept,
        encoded: EncodedConcept | None,
        rates: PromptRates,
        progress: Stages,
    ) -> Artifact:
        return fit_denoiser(
            image_model,
            concept,
            encoded,
            rates,
            chosen,
            training,
            progress,
            kinds=kinds,
            keeping=kept_beside(run),
            transport=transport,
        )

    save_resumable(run, fit)
