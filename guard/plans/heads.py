"""Heads of screens on one encoder, loaded from their artifacts: one matrix of scores for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifiers.embeddings.first_stage import FirstStage, FirstStages
from classifiers.embeddings.heads import EmbeddingHead, EmbeddingScores, Flags, Floats
from guard.artifact import Artifact
from guard.config.policy_schema import PLACES, Place
from guard.config.schema import GuardConfig
from guard.errors import GuardError
from steering.methods import Method, method_named
from steering.methods.fitted import FittedGuard

Loaded = Sequence[tuple[GuardConfig, Artifact]]
"""Guards with their artifacts."""


@dataclass(frozen=True, slots=True)
class Head:
    """A head in the matrix of scores: its `column`, the threshold of its guard, and the places that
    it was fitted for."""

    name: str
    concept: str
    method: str
    threshold: float
    places: frozenset[Place]
    column: int


class Heads:
    """All heads on one encoder, and `first`, their first stages, None where no head has one.
    `fails` is called for each guard that does not load, with the reason."""

    def __init__(
        self, guards: Loaded, fingerprint: str, served: str, fails: Callable[[str, str], None]
    ) -> None:
        fitted: dict[Method, list[FittedGuard]] = {}
        facts: dict[str, tuple[Artifact, float, frozenset[Place]]] = {}
        stages: dict[str, FirstStage | None] = {}
        for setting, artifact in guards:
            guard = FittedGuard(setting.name, artifact.tensors, artifact.meta.settings)
            try:
                artifact.require_model(fingerprint, served=served)
                method = method_named(artifact.meta.method)
                method.stacked([guard])
                method.require_in_range({"threshold": setting.threshold}, setting.name)
                fitted_threshold = _threshold(artifact.meta.settings)
                stage = FirstStage.of(artifact.tensors, artifact.meta.settings)
                places = _places(artifact.meta.settings)
            except (GuardError, ValueError) as error:
                fails(setting.name, f"{setting.artifact}: {error}")
                continue
            threshold = fitted_threshold if setting.threshold is None else setting.threshold
            facts[setting.name] = artifact, threshold, places
            # its cut was made for the fitted threshold: under a lower one it would clear too much
            stages[setting.name] = stage if threshold >= fitted_threshold else None
            fitted.setdefault(method, []).append(guard)
        self._stacks: tuple[EmbeddingScores, ...] = tuple(
            method.stacked(of_method) for method, of_method in fitted.items()
        )
        names = [guard.name for of_method in fitted.values() for guard in of_method]
        self.all: tuple[Head, ...] = tuple(
            Head(name, artifact.meta.concept, artifact.meta.method, threshold, places, column)
            for column, name in enumerate(names)
            for artifact, threshold, places in (facts[name],)
        )
        self.first = _first_stages(self.all, stages, facts)

    @property
    def reads_sentences(self) -> bool:
        """Whether any head reads single sentences of a text too."""
        return any(_reads_sentences(stack) for stack in self._stacks)

    def scores(self, embeddings: Floats, sentence: Flags | None = None) -> Floats:
        """Probabilities `[n, heads]`, float32, of `embeddings [n, width]`, of which `sentence [n]`
        marks those of single sentences."""
        scores = [_scores(stack, embeddings, sentence) for stack in self._stacks]
        return np.concatenate(scores, axis=1)


def _reads_sentences(stack: EmbeddingScores) -> bool:
    # a method of another package may know nothing of sentences
    return bool(getattr(stack, "reads_sentences", False))


def _scores(stack: EmbeddingScores, embeddings: Floats, sentence: Flags | None) -> Floats:
    """Single sentences say nothing to heads that do not read them: their scores are 0."""
    if sentence is None:
        return stack.scores(embeddings)
    if _reads_sentences(stack):
        return stack.scores(embeddings, sentence)
    return np.where(sentence[:, None], np.float32(0.0), stack.scores(embeddings))


def _first_stages(
    heads: Sequence[Head],
    stages: Mapping[str, FirstStage | None],
    facts: Mapping[str, tuple[Artifact, float, frozenset[Place]]],
) -> FirstStages | None:
    if not any(stages.values()):
        return None
    teachers: list[EmbeddingHead | None] = []
    for head in heads:
        artifact = facts[head.name][0]
        has_stage = stages[head.name] is not None
        parts = artifact.tensors, artifact.meta.settings
        teachers.append(EmbeddingHead.from_tensors(*parts) if has_stage else None)
    return FirstStages(
        [stages[head.name] for head in heads], teachers, [head.threshold for head in heads]
    )


def _threshold(settings: Mapping[str, Any]) -> float:
    value = settings.get("threshold")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"its threshold must be a number, not {value!r}: fit it again")
    return float(value)


def _places(settings: Mapping[str, Any]) -> frozenset[Place]:
    """The places that a screen was fitted for, which it reads where a policy does not say."""
    value = settings.get("look", PLACES)
    named = value if isinstance(value, list | tuple) else ()
    known = frozenset(place for place in PLACES if place in named)
    if not known or len(known) != len(named):
        raise ValueError(f"its places must be of {', '.join(PLACES)}, not {value!r}: fit it again")
    return known
