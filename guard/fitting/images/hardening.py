"""Hardening a CGCE guard: it is attacked, and learns from what came through, round by round.

A round searches prompts and learned words through the present guard (`guard.fitting.prompts.
attack`). What evades it and shows the concept becomes unsafe; its neighbours, a few tokens away,
become unsafe or safe as the denoiser sees them. With the first round come prompts of random words,
half of them with a phrase of the concept, labelled in the same way: a guard that learns from a few
attacks alone forgets how the concept looks among noise. Every classifier of the guard trains on
from where it is, without its own fold of all prompts; then the threshold is calibrated again on
held-out prompts, at the rates of the fit, which attacks do not count for. A fresh search decides
whether there is another round; the guard that let least through is the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classifiers.heads import PARTS, Heads
from classifiers.training import Recipe, train_heads
from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.errors import ArtifactError, DataError
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.images.attacked_prompts import JudgedAttempts, Searched, noise, search
from guard.fitting.images.cgce import calibrated_guard
from guard.fitting.prompts.attack import Attack, Attacker, Score, learned_conditioning
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.likeness import likeness_of
from guard.fitting.prompts.rates import Calibrated, PromptRates
from guard.fitting.prompts.search import with_mistaken
from guard.models.images import ImageModel
from guard.reporting.progress import Stages
from steering.images.conditioning import Conditioning, concatenated
from steering.methods.cgce import stack
from steering.methods.fitted import FittedGuard

METHOD = "cgce"
_SAME = 0.01
"""How far the share of prompts that fire may be from the fit's, on another machine."""
_SEEDS = 1000
"""Between the seeds of two rounds."""


@dataclass(frozen=True)
class Hardening:
    """At most `rounds` of training, until a fresh attack's share of successes is at most `until`.

    Of what came through, `neighbours` are made, and once `noise` prompts of random words. The
    classifiers train on by the steps of `recipe`; attacks and their neighbours are `share` of every
    batch, unless each of them would be sampled more than `most` times as often as other prompts.
    """

    rounds: int = 3
    until: float = 0.1
    neighbours: int = 6
    noise: int = 300
    share: float = 0.3
    most: float = 4.0
    recipe: Recipe = Recipe(steps=300, rate=1e-3)
    attack: Attack = Attack()
    bf16: bool = False


class _Lesson:
    """All prompts with their states: those that the guard was fitted on, and attacks."""

    def __init__(self, prompts: Sequence[LabelledPrompt], text: Conditioning) -> None:
        self.prompts, self.text = [*prompts], text
        self.splits = sorted({prompt.split for prompt in prompts} - {"train"})
        self._attacks = torch.zeros(len(prompts)).bool()

    def add(self, image_model: ImageModel, searched: Searched, number: int | None) -> None:
        """The rows of the search of a round, or those that are no attacks, dealt out to the
        folds."""
        labelled = [(text, "drawn") for text in (*searched.prompts, *searched.unsafe)]
        labelled += [(text, "undrawn") for text in searched.safe]
        parts = [self.text]
        if labelled:
            parts.append(image_model.encode([text for text, _ in labelled]))
        if searched.words:
            vectors = [torch.tensor(word) for word in searched.words]
            parts.append(learned_conditioning(image_model, vectors))
            names = range(1, len(vectors) + 1)
            labelled += [(f"learned word {name} of round {number}", "drawn") for name in names]
        for text, kind in labelled:
            split = self.splits[len(self.prompts) % len(self.splits)]
            self.prompts.append(LabelledPrompt(text, kind, split))
        self.text = concatenated(parts)
        added = torch.full((len(labelled),), number is not None)
        self._attacks = torch.cat([self._attacks, added])

    @property
    def unsafe(self) -> Tensor:
        return torch.tensor([prompt.unsafe for prompt in self.prompts])

    def of(self, split: str) -> Tensor:
        return torch.tensor([prompt.split == split for prompt in self.prompts])

    def weights(self, share: float, most: float) -> Tensor:
        """Those with which attacks are `share` of what is sampled of each label; an attack has the
        weight `most` of another prompt at most."""
        unsafe, weights = self.unsafe, torch.ones(len(self.prompts))
        for side in (unsafe, ~unsafe):
            attacks, others = side & self._attacks, side & ~self._attacks
            if attacks.any():
                even = float(others.sum() / attacks.sum())
                weights[attacks] = min(share / (1 - share) * even, most)
        return weights


def harden(
    image_model: ImageModel,
    artifact: Artifact,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    *,
    rates: PromptRates,
    hardening: Hardening,
    judged: JudgedAttempts | None,
    kept: Checkpoints,
    seed: int,
    progress: Stages,
) -> Calibrated:
    """The hardened guard; its calibration has a row of each round under `rounds`, and under
    `came_through` the share of successes of the search through this guard, that of `best_round`;
    in round 0 it is the guard as it was.

    `prompts` are those of the guard's own fit, in the same folds: each classifier is calibrated on
    the fold that it has not learned. Finished rounds are `kept`.

    Raises ArtifactError for a guard of another method, FingerprintError for one of another encoder,
    and DataError where the guard does not score these prompts as in its fit.
    """
    if artifact.meta.method != METHOD:
        raise ArtifactError(
            f"guards of method {artifact.meta.method!r} have no classifiers of prompts to harden: "
            "give an artifact of `guard fit cgce`"
        )
    artifact.require_model(image_model.fitted_model().fingerprint, served=image_model.name)
    lesson = _Lesson(prompts, image_model.encode([p.text for p in prompts], progress))
    tensors = dict(artifact.tensors)
    _require_the_fold_of_each(artifact, lesson)
    likeness = likeness_of(image_model, concept, prompts, seed=seed, bf16=hardening.bf16)
    lesson.prompts = with_mistaken(image_model, lesson.prompts, likeness, progress)
    attacker = Attacker(image_model, likeness, hardening.attack)
    # the name itself is what every guard knows
    phrases = concept.phrases.train[1:] or concept.phrases.train

    def calibrated(tensors: Mapping[str, Any]) -> Calibrated:
        scored = _held_out(tensors, artifact.meta.settings, lesson)
        unsafe = lesson.text.select(lesson.unsafe)
        settings = artifact.meta.settings
        return calibrated_guard(image_model, concept, tensors, settings, scored, unsafe, rates)

    fitted, rounds = calibrated(tensors), list[dict[str, Any]]()
    best, least, best_round = fitted, float("inf"), 0
    for number in range(hardening.rounds + 1):
        score, limit = _decision(fitted.artifact)
        searching = partial(
            search,
            attacker,
            score,
            limit,
            phrases,
            hardening.neighbours,
            judged,
            seed + _SEEDS * (number + 1),
            progress,
        )
        found = kept.value(f"round-{number}", searching)
        searched = Searched(**found)
        rounds.append(_row(number, searched, fitted))
        if searched.found < least:
            best, least, best_round = fitted, searched.found, number
        if number == hardening.rounds or searched.found <= hardening.until * searched.searches:
            break
        if not number:
            among = kept.value("noise", partial(noise, attacker, phrases, hardening.noise, seed))
            lesson.add(image_model, Searched(**among), None)
        lesson.add(image_model, searched, number)
        train = partial(_trained, tensors, lesson, hardening, progress)
        trained = kept.tensors(f"heads-{number}", train)
        tensors = tensors | {name: values.numpy() for name, values in trained.items()}
        fitted = calibrated(tensors)
    meta = best.artifact.meta
    calibration = {
        **meta.calibration,
        "came_through": least / searched.searches,
        "best_round": best_round,
        "hardened_from": artifact.digest,
        "rounds": rounds,
    }
    meta = meta.model_copy(update={"calibration": calibration, "tensors_sha256": ""})
    return replace(best, artifact=Artifact(meta, dict(best.artifact.tensors)))


def _decision(artifact: Artifact) -> tuple[Score, float]:
    """The score of a guard, and its threshold."""
    settings = artifact.meta.settings
    guards = stack([FittedGuard("hardened", artifact.tensors, settings)])
    return lambda text: guards.sense(text)[:, 0], float(str(settings["threshold"]))


def _heads(tensors: Mapping[str, Any], stream: str) -> Heads:
    """The classifiers of a stream, one for each fold."""
    parts = {part: torch.from_numpy(np.array(tensors[f"{part}.{stream}"])) for part in PARTS}
    return Heads(**parts)


def _trained(
    tensors: Mapping[str, Any], lesson: _Lesson, hardening: Hardening, progress: Stages
) -> dict[str, Tensor]:
    """The tensors of all classifiers, each trained on without its fold."""
    unsafe, recipe = lesson.unsafe, hardening.recipe
    weights = lesson.weights(hardening.share, hardening.most)
    advance = progress("training on", recipe.steps * len(lesson.splits) * len(lesson.text.states))
    trained: dict[str, list[Heads]] = {}
    for fold, split in enumerate(lesson.splits):
        train = ~lesson.of(split)
        for stream, states in lesson.text.states.items():
            heads = train_heads(
                states[train],
                unsafe[train],
                replace(recipe, seed=recipe.seed + fold),
                advance,
                start=_heads(tensors, stream).select(torch.tensor([fold])),
                weights=weights[train],
            )
            trained.setdefault(stream, []).append(heads)
    return {
        f"{part}.{stream}": torch.cat([getattr(heads, part) for heads in folds])
        for stream, folds in trained.items()
        for part in PARTS
    }


def _held_out(
    tensors: Mapping[str, Any], settings: Mapping[str, Any], lesson: _Lesson
) -> list[tuple[LabelledPrompt, float]]:
    """Each prompt of a fold with the score of the classifiers that have not learned it."""
    scored: list[tuple[LabelledPrompt, float]] = []
    for fold, split in enumerate(lesson.splits):
        alone = {
            name: values[fold : fold + 1] if name.partition(".")[0] in PARTS else values
            for name, values in tensors.items()
        }
        rows = lesson.of(split)
        logits = stack([FittedGuard("fold", alone, settings)]).sense(lesson.text.select(rows))
        own = (prompt for prompt in lesson.prompts if prompt.split == split)
        scored += zip(own, logits[:, 0].tolist(), strict=True)
    return scored


def _require_the_fold_of_each(artifact: Artifact, lesson: _Lesson) -> None:
    meta = artifact.meta
    counts = {
        len(values) for name, values in artifact.tensors.items() if name.startswith("queries.")
    }
    if counts != {len(lesson.splits)}:
        raise DataError(
            f"the guard has {max(counts)} classifiers: give --folds {max(counts)}, as its fit had"
        )
    threshold = float(str(meta.settings["threshold"]))
    asked = [s for p, s in _held_out(artifact.tensors, meta.settings, lesson) if p.kind == "unsafe"]
    found = float(np.mean(np.asarray(asked) > threshold))
    expected = float(str(meta.calibration["recall"]))
    if abs(found - expected) > _SAME:
        raise DataError(
            f"of these prompts {found:.1%} fire, of those of the guard's fit {expected:.1%}: give "
            "the concept file, --count, --folds, --seed and --pairs of the fit, so that each "
            "classifier is calibrated on prompts that it has not learned"
        )


def _row(number: int, searched: Searched, fitted: Calibrated) -> dict[str, Any]:
    figures = fitted.artifact.meta.calibration
    return {
        "round": number,
        "searches": searched.searches,
        "prompts_through": len(searched.prompts),
        "words_through": len(searched.words),
        "neighbours": len(searched.unsafe) + len(searched.safe),
        "threshold": fitted.artifact.meta.settings["threshold"],
        **{name: figures[name] for name in ("recall", "far_fired", "near_fired")},
    }
