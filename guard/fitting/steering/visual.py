"""The visual part of an erasure direction: clean images against perturbed ones.

MLLMEraser (arXiv 2510.04217, section 3) contrasts clean images with erasure answers against
perturbed images with recall answers. With the state of a clean image under the recall answer in
between, that is the sum of two differences,

    h(clean, erasure) - h(perturbed, recall)
        = [h(clean, erasure) - h(clean, recall)] + [h(clean, recall) - h(perturbed, recall)],

the textual part, which prompts without images have too, and the visual part, computed here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from guard.data.prompts import ForgetPrompt
from guard.errors import DataError
from guard.fitting.steering.asking import prompt_of
from guard.fitting.steering.directions import POSITIONS, answer_states
from guard.fitting.steering.perturbation import Perturbation, Perturbed, perturb
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.methods.steer import contrast

Parts = Literal["text", "visual", "both"]

PERTURBED = 12
"""Prompts whose image is perturbed, of as many subjects as there are: gradients cost the most."""


@dataclass(frozen=True)
class VisualPart:
    """`direction [layers, width]`, and the rows whose images were perturbed for it."""

    direction: Tensor
    rows: tuple[ForgetPrompt, ...]
    images: tuple[Perturbed, ...]


def visual_part(
    chat: ChatModel,
    rows: Sequence[ForgetPrompt],
    answers: Sequence[Sequence[int]],
    how: Perturbation,
    *,
    seed: int,
    progress: Stages,
) -> VisualPart | None:
    """The visual part from `rows` with one image each and the model's recall `answers`, token ids;
    None where no row has just one."""
    chosen = _spread([i for i, row in enumerate(rows) if len(row.images) == 1], rows, seed)
    if not chosen:
        return None
    picked = [rows[i] for i in chosen]
    recall = [(chat.ids(rows[i].answer or "") or list(answers[i]))[:POSITIONS] for i in chosen]
    prompts = [prompt_of(chat, row) for row in picked]
    images = perturb(chat, prompts, recall, how, seed=seed, progress=progress)
    changed = [
        chat.prompt(row.prompt, [i.perturbed]) for row, i in zip(picked, images, strict=True)
    ]
    clean = answer_states(chat, prompts, recall, "clean images", progress)
    perturbed = answer_states(chat, changed, recall, "perturbed images", progress)
    return VisualPart(contrast(clean, perturbed).float(), tuple(picked), tuple(images))


def combined(textual: Tensor, visual: VisualPart | None, parts: Parts) -> Tensor:
    """The direction `[layers, width]` of these parts. Raises DataError without a visual one."""
    if parts == "text":
        return textual
    if visual is None:
        raise DataError(
            "the direction has no visual part: no forget prompt of the train split has an image; "
            "ask for --parts text"
        )
    return visual.direction if parts == "visual" else textual + visual.direction


def _spread(candidates: Sequence[int], rows: Sequence[ForgetPrompt], seed: int) -> list[int]:
    """At most PERTURBED of `candidates`, one of each subject in turn, in ascending order."""
    shuffled = random.Random(seed).sample(candidates, len(candidates))
    turn: dict[str, int] = {}
    order = []
    for place, i in enumerate(shuffled):
        turn[rows[i].subject] = turn.get(rows[i].subject, -1) + 1
        order.append((turn[rows[i].subject], place, i))
    return sorted(i for _, _, i in sorted(order)[:PERTURBED])
