"""The questions of a run: samples of each kind, some with altered portraits or thinking aloud."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from guard.data.benchmarks.questions import Benchmark, By, Part, Question, Task
from guard.evaluation.mllmu.transforms import TRANSFORMS, transformed
from guard.evaluation.mllmu.wordings import text_of

ALOUD = "aloud"
"""The variant in which the model is asked to think step by step first."""

Options = Literal["text", "letter"]
"""How an option is chosen: each one's text is scored as the answer to the plain question, or its
letter as the answer to the question with the options listed (as published)."""

OPTIONS: tuple[Options, ...] = get_args(Options)

LETTER_TOKENS = 3
ANSWER_TOKENS = 12
ALOUD_TOKENS = 50

V = TypeVar("V")


@dataclass(frozen=True)
class Kind:
    """What questions of one cell of the report have in common; `variant` is a transform's name,
    ALOUD or empty."""

    part: Part
    task: Task
    by: By
    variant: str = ""


@dataclass(frozen=True, eq=False)
class Asked:
    """A question as it is put: `stranger` is who stands beside the person in some transforms,
    `seed` that of the transform; `changed` replaces the image, where there is one."""

    question: Question
    variant: str = ""
    options: Options = "text"
    stranger: Question | None = None
    seed: int = 0
    changed: NDArray[np.uint8] | None = None

    @property
    def kind(self) -> Kind:
        """The cell of the report that it belongs to."""
        return Kind(self.question.part, self.question.task, self.question.by, self.variant)

    @property
    def text(self) -> str:
        """The user's message."""
        return text_of(self.question, aloud=self.variant == ALOUD, listed=self.options == "letter")

    @property
    def is_scored(self) -> bool:
        """Whether the texts of options are scored, and nothing is generated."""
        return self.question.task == "classification" and self.options == "text"

    @property
    def max_tokens(self) -> int:
        """The length of the answer in tokens."""
        if self.question.task == "classification":
            return 0 if self.is_scored else LETTER_TOKENS
        return ALOUD_TOKENS if self.variant == ALOUD else ANSWER_TOKENS

    @cached_property
    def image(self) -> NDArray[np.uint8] | None:
        """The image that goes with it, `[height, width, 3]`. Raises DataError for a bad file."""
        if self.changed is not None or self.question.portrait is None:
            return self.changed
        pixels = self.question.portrait.pixels()
        if self.variant not in TRANSFORMS:
            return pixels
        other = self.stranger.portrait if self.stranger else None
        return transformed(
            self.variant, pixels, pixels if other is None else other.pixels(), self.seed
        )


def asked_questions(
    benchmark: Benchmark,
    *,
    parts: Sequence[Part],
    limit: int | None,
    options: Options = "text",
    seed: int = 0,
) -> list[Asked]:
    """The questions of these parts: of each part, task and way at most `limit`.

    With the part "forget" its generations are asked under each transform as well, where they have
    a portrait, and thinking aloud.
    """
    by_kind: dict[Kind, list[Question]] = {}
    for question in benchmark.questions:
        by_kind.setdefault(Asked(question).kind, []).append(question)
    strangers = _one_for_each(q for q in benchmark.questions if q.part == "retain" and q.portrait)
    asked = []
    for kind, questions in by_kind.items():
        if kind.part not in parts:
            continue
        rng = random.Random(f"{seed} {kind}")
        sample = _sample(questions, limit, rng)
        asked += [Asked(question, options=options) for question in sample]
        if (kind.part, kind.task) != ("forget", "generation"):
            continue
        asked += [Asked(question, ALOUD) for question in sample]
        if kind.by != "name":
            asked += [
                Asked(
                    question,
                    name,
                    stranger=rng.choice(strangers) if strangers else None,
                    seed=rng.randrange(2**32),
                )
                for name in TRANSFORMS
                for question in sample
            ]
    return asked


def grouped(asked: Sequence[Asked], values: Sequence[V]) -> Mapping[Kind, list[tuple[Asked, V]]]:
    """Pairs of a question and its value, by the kind of question."""
    groups: dict[Kind, list[tuple[Asked, V]]] = {}
    for item, value in zip(asked, values, strict=True):
        groups.setdefault(item.kind, []).append((item, value))
    return groups


def _one_for_each(questions: Iterable[Question]) -> list[Question]:
    """The first question about each person."""
    return [*{question.person: question for question in reversed([*questions])}.values()][::-1]


def _sample(questions: Sequence[Question], limit: int | None, rng: random.Random) -> list[Question]:
    if limit is None or limit >= len(questions):
        return [*questions]
    return [questions[i] for i in sorted(rng.sample(range(len(questions)), limit))]
