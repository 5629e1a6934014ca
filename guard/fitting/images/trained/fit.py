"""One fit for all erasers that are trained: their loss, on low-rank factors of their layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.errors import DataError
from guard.evaluation.m_erasure.learned_words import frozen
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.images.imported import base_of, overlay_artifact
from guard.fitting.images.trained.lesson import Lesson
from guard.fitting.images.training_free import EncodedConcept
from guard.fitting.overlays.deltas import Deltas
from guard.fitting.overlays.training import Objective, Training, train
from guard.fitting.prompts.concept_prompts import prompts_of
from guard.fitting.prompts.rates import PromptRates
from guard.fitting.resuming import ResumableGenerator
from guard.reporting.progress import Stages
from steering.fingerprint import fingerprint

if TYPE_CHECKING:  # it loads diffusers, which nothing here needs
    from guard.models.images import ImageModel

_PROMPTS = 400
"""Prompts that are made from a concept file to train on."""
RECIPE = 1
"""Of the losses and the loop: count it up where a change of them makes the updates others, of which
a training that was killed has left a state behind."""

Keeping = Callable[[str], Checkpoints]
"""Where the states of a training are kept, from what they are of, in words."""


class Eraser(Protocol):
    """A published way to train; its settings are the fields of a dataclass."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class TrainedFit:
    """What is trained: `layers` by their names in overlays, and the objective, once the factors are
    there. `keeping` None keeps no state. With `transport` a gated guard's strength follows the
    prompt's score."""

    eraser: Eraser
    training: Training
    layers: Sequence[str]
    objective: Callable[[Lesson], Objective]
    keeping: Keeping | None = None
    transport: bool = False


def fit_trained(
    image_model: ImageModel,
    concept: Concept,
    encoded: EncodedConcept | None,
    rates: PromptRates,
    fit: TrainedFit,
    progress: Stages,
) -> Artifact:
    """A guard that overlays a pipeline by trained factors; without `encoded` it has no gate. Its
    setting `zeroed` names the layers that a penalty has left out.

    Raises DataError for a training that fails or held-out prompts that are too few for the rates,
    and ModelError for a pipeline that cannot be trained.
    """
    base, training, eraser = base_of(image_model.family), fit.training, fit.eraser
    deltas = Deltas(base, fit.layers, training.rank, training.seed)
    made = [p for p in prompts_of(concept, _PROMPTS, training.seed) if p.split == "train"]
    asking, keeping = ([p.text for p in made if p.unsafe is unsafe] for unsafe in (True, False))
    if not asking or not keeping:
        raise DataError("no anchors: the concept file makes no prompts with it, or none without")
    generator = torch.Generator().manual_seed(training.seed)
    lesson = Lesson(
        image_model, base, deltas, concept, training, asking, keeping, generator, progress
    )
    settings, loop = asdict(eraser), asdict(training) | {"betas": list(training.betas)}
    networks = list(base.networks.values())
    kept = None
    if fit.keeping is not None:
        model = fingerprint(torch.nn.ModuleList(networks))
        device, words = str(image_model.family.device), _words(concept)
        about = [RECIPE, eraser.name, model, device, settings, loop, list(fit.layers), words]
        kept = fit.keeping(json.dumps(about))
    with frozen(networks):
        objective = fit.objective(lesson)
        parts = {**objective.parts, "generator": ResumableGenerator(generator)}
        objective = Objective(objective.losses, parts)
        losses = train(deltas, objective, training, progress("training", training.steps), kept)
    origin = {
        "source": eraser.name,
        "layout": "trained",
        "training": loop | settings | {"loss": losses[-1]},
        **({"zeroed": deltas.zeroed} if training.penalty else {}),
    }
    return overlay_artifact(
        image_model,
        concept,
        encoded,
        rates,
        deltas.factors(),
        origin,
        transport=fit.transport,
    )


def _words(concept: Concept) -> dict[str, Any]:
    """The words that a concept's prompts are made of."""
    return concept.model_dump(mode="json", exclude={"description"})
