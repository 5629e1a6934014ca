"""One fit for all erasers that train a text encoder: their loss, on low-rank factors of theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.evaluation.m_erasure.learned_words import frozen
from guard.fitting.images.imported import base_of, overlay_artifact
from guard.fitting.images.text_encoders.blocks import Block, blocks_of
from guard.fitting.images.text_encoders.images import ImageSettings, NoisyImages
from guard.fitting.images.training_free import EncodedConcept
from guard.fitting.overlays.base import Base
from guard.fitting.overlays.training import Deltas, Training, train
from guard.fitting.prompts.concept_prompts import prompts_of
from guard.fitting.prompts.rates import PromptRates
from guard.reporting.progress import Stages
from steering.images.conditioning import Conditioning

if TYPE_CHECKING:  # it loads diffusers, which nothing here needs
    from guard.models.images import ImageModel
    from steering.engines.diffusion.families import Family

_PROMPTS = 400
"""Prompts that are made from a concept file to train on."""

Loss = Callable[[int], Tensor]
"""The loss of an update, by its number: a scalar."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a loss is computed from.

    `deltas` change the encoders inside `deltas.on()`; outside it the model is the bare one.
    `phrases` name the concept; `asking` are prompts with it, `keeping` prompts without it.
    """

    image_model: ImageModel
    base: Base
    blocks: Mapping[str, Sequence[Block]]
    deltas: Deltas
    concept: Concept
    training: Training
    asking: Sequence[str]
    keeping: Sequence[str]
    generator: torch.Generator
    progress: Stages

    @property
    def family(self) -> Family:
        return self.image_model.family

    @property
    def phrases(self) -> Sequence[str]:
        return self.concept.phrases.train

    def sample(self, prompts: Sequence[str], count: int) -> list[str]:
        """`count` of these prompts, at random."""
        chosen = torch.randint(len(prompts), (count,), generator=self.generator)
        return [prompts[i] for i in chosen.tolist()]

    def edited(self, prompts: Sequence[str], **arguments: Any) -> Conditioning:
        """The conditionings of prompts by the changed encoders, differentiable."""
        with self.deltas.on():
            return self.family.encode(prompts, **arguments)

    def bare(self, prompts: Sequence[str]) -> Conditioning:
        """Those by the encoders as they are."""
        with torch.no_grad():
            return self.family.encode(prompts)

    def moved(self, prompts: Sequence[str]) -> Tensor:
        """How far the states of prompts move, in units of how far they lie apart: a scalar."""
        before, after = self.bare(prompts), self.edited(prompts)
        parts = []
        for stream, states in before.states.items():
            real = before.masks[stream]
            change = (after.states[stream] - states)[real].float()
            spread = states[real].float()
            parts.append(change.square().sum() / (spread - spread.mean(0)).square().sum())
        return torch.stack(parts).mean()

    def images(self, prompts: Sequence[str], settings: ImageSettings) -> NoisyImages:
        """The bare model's images of prompts."""
        return NoisyImages(self.image_model, prompts, settings, self.progress)


class EncoderEraser(Protocol):
    """A published way to train a text encoder; its settings are the fields of a dataclass."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def layers(self, blocks: Mapping[str, Sequence[Block]]) -> list[str]:
        """The layers that are trained."""

    def loss(self, lesson: Lesson) -> Loss:
        """The loss of each update."""


def fit_text_encoder(
    image_model: ImageModel,
    concept: Concept,
    encoded: EncodedConcept | None,
    rates: PromptRates,
    eraser: EncoderEraser,
    training: Training,
    progress: Stages,
) -> Artifact:
    """A guard that overlays the text encoders of a pipeline; without `encoded` it has no gate.

    Raises ModelError for encoders that cannot be trained, and DataError for a training that fails
    or held-out prompts that are too few for the rates.
    """
    base = base_of(image_model.family)
    blocks = blocks_of(image_model.family.encoders)
    deltas = Deltas(base, eraser.layers(blocks), training)
    made = [p for p in prompts_of(concept, _PROMPTS, training.seed) if p.split == "train"]
    lesson = Lesson(
        image_model,
        base,
        blocks,
        deltas,
        concept,
        training,
        asking=[prompt.text for prompt in made if prompt.unsafe],
        keeping=[prompt.text for prompt in made if not prompt.unsafe],
        generator=torch.Generator().manual_seed(training.seed),
        progress=progress,
    )
    with frozen(list(base.networks.values())):
        loss = eraser.loss(lesson)
        losses = train(deltas, loss, training, progress("training", training.steps))
    used = asdict(training) | asdict(eraser) | {"loss": losses[-1]}
    used["betas"] = list(training.betas)
    origin = {"source": eraser.name, "layout": "trained", "training": used}
    return overlay_artifact(image_model, concept, encoded, rates, deltas.factors(), origin)
