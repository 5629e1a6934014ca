"""Choosing among the rounds of an eraser by images of validation prompts, as a judge sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from guard.data.concept import Concept
from guard.errors import DataError
from guard.evaluation.images.generator import generated
from guard.evaluation.images.judge import Judge
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.models.images import ImageModel
from guard.reporting.progress import Stages
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.hidden.rows import RowGuard
from steering.images.stacks import ImageStacks
from steering.methods import method_named
from steering.methods.fitted import FittedGuard
from steering.methods.stacking import MethodGuard

_TRIAL = "trial"
_CAPACITY = 16


@dataclass(frozen=True)
class JudgedRounds:
    """Images of `prompts` under an overlay without its gate, and whether they show `label`."""

    image_model: ImageModel
    judge: Judge
    label: str
    prompts: Sequence[str]
    steps: int
    guidance: float
    seed: int = 0

    @torch.no_grad()
    def leaks(
        self, method: str, tensors: Mapping[str, Any], settings: Mapping[str, Any], progress: Stages
    ) -> int:
        """The number of images that show the concept under these tensors of an overlay."""
        ungated = {**settings, "gated": False, "bias": 0.0, "threshold": 0.0}
        guard = MethodGuard(method_named(method), FittedGuard(_TRIAL, tensors, ungated))
        family = self.image_model.family
        engine = DiffusionEngine(family, ImageStacks.of([guard], family.device), capacity=_CAPACITY)
        starts = [
            ImageStart(
                prompt,
                seed=self.seed + i,
                steps=self.steps,
                guidance=self.guidance,
                guards=[RowGuard(_TRIAL, 0.0, 1.0)],
            )
            for i, prompt in enumerate(self.prompts)
        ]
        advance = progress("judging a round", len(starts))
        try:
            rows = generated(engine, starts, advance)
        finally:
            engine.close()
        views = self.judge.views(np.stack([row.image for row in rows]))
        return sum(view.shows(self.label) for view in views)


def label_of(concept: Concept, judge: Judge) -> str:
    """The judge's label of a concept, the last part of its name. Raises DataError."""
    label = concept.name.rpartition("/")[2]
    if not judge.knows(label):
        known = ", ".join([*judge.concepts, *judge.styles])
        raise DataError(f"the judge knows no {label!r}: it knows {known}")
    return label


def validation_prompts(prompts: Sequence[LabelledPrompt], count: int) -> list[str]:
    """The first `count` held-out prompts that ask for the concept."""
    return [p.text for p in prompts if p.unsafe and p.split != "train"][:count]
