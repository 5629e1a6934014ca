"""Hardening a CGCE guard: it is attacked, and learns from what came through, round by round.

A round searches prompts and learned words through the present guard (`guard.fitting.prompts.
attack`). What evades it and shows the concept becomes unsafe, its neighbours, a few tokens away,
become unsafe or safe as the denoiser sees them, and so do the random words that searches start
from. Every classifier of the guard trains on from where it is, without its own fold of all prompts;
then the threshold is calibrated again on held-out prompts, at the rates of the fit, which attacks
do not count for. A fresh search decides whether there is another round, and what is reported.
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
from guard.evaluation.images.generator import generated
from guard.evaluation.images.judge import Judge
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.images.cgce import calibrated_guard
from guard.fitting.prompts.attack import Attack, Attacker, Attempt, learned_conditioning
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.likeness import DRAWN, UNDRAWN, likeness_of
from guard.fitting.prompts.rates import Calibrated, PromptRates
from guard.fitting.prompts.search import with_mistaken
from guard.fitting.prompts.vocabulary import typed
from guard.models.images import ImageModel
from guard.reporting.progress import Stages
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.images.conditioning import Conditioning, concatenated
from steering.methods.cgce import CgceGuards, stack
from steering.methods.fitted import FittedGuard

METHOD = "cgce"
_SAME = 0.01
"""How far the share of prompts that fire may be from the fit's, on another machine."""
_CAPACITY = 16
_SEEDS = 1000
"""Between the seeds of two rounds."""


@dataclass(frozen=True)
class Hardening:
    """At most `rounds` of training, until a fresh attack's share of successes is at most `until`.

    Of what came through, `neighbours` are made. The classifiers train on by `steps` of `recipe`,
    and `share` of every batch are attacks and their neighbours.
    """

    rounds: int = 3
    until: float = 0.1
    neighbours: int = 6
    share: float = 0.3
    recipe: Recipe = Recipe(steps=300, rate=1e-3)
    attack: Attack = Attack()
    bf16: bool = False


@dataclass(frozen=True)
class JudgedAttempts:
    """A judge of images, and how they are generated: an attack counts only if its image shows
    `label`."""

    judge: Judge
    label: str
    steps: int
    guidance: float

    @property
    def about(self) -> list[Any]:
        """What the results depend on, JSON-ready."""
        return [self.judge.digest, self.label, self.steps, self.guidance]

    @torch.no_grad()
    def shown(
        self, image_model: ImageModel, attempts: Sequence[Attempt], seed: int
    ) -> list[Attempt]:
        """Those whose image, of the model without guards, shows the label."""
        if not attempts:
            return []
        engine = DiffusionEngine(image_model.family, capacity=_CAPACITY)
        starts = [
            ImageStart(
                attempt.prompt,
                seed=seed + number,
                steps=self.steps,
                guidance=self.guidance,
                embeddings=attempt.learned,
            )
            for number, attempt in enumerate(attempts)
        ]
        try:
            images = np.stack([row.image for row in generated(engine, starts, lambda _n: None)])
        finally:
            engine.close()
        views = self.judge.views(images)
        return [a for a, view in zip(attempts, views, strict=True) if view.shows(self.label)]


@dataclass(frozen=True)
class _Searched:
    """The result of one search: what came through, and labelled prompts around it."""

    searches: int
    prompts: list[str]
    words: list[list[list[float]]]
    unsafe: list[str]
    safe: list[str]

    @property
    def found(self) -> int:
        return len(self.prompts) + len(self.words)


class _Lesson:
    """All prompts with their states: those that the guard was fitted on, and attacks."""

    def __init__(self, prompts: Sequence[LabelledPrompt], text: Conditioning) -> None:
        self.prompts, self.text = [*prompts], text
        self.splits = sorted({prompt.split for prompt in prompts} - {"train"})
        self._given = len(prompts)

    def add(self, image_model: ImageModel, searched: _Searched, number: int) -> None:
        """The rows of one search, dealt out to the folds."""
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

    @property
    def unsafe(self) -> Tensor:
        return torch.tensor([prompt.unsafe for prompt in self.prompts])

    def of(self, split: str) -> Tensor:
        return torch.tensor([prompt.split == split for prompt in self.prompts])

    def weights(self, share: float) -> Tensor:
        """Those with which attacks are `share` of what is sampled of each label."""
        unsafe, weights = self.unsafe, torch.ones(len(self.prompts))
        attack = torch.arange(len(self.prompts)) >= self._given
        for side in (unsafe, ~unsafe):
            attacks, others = (side & attack).sum(), (side & ~attack).sum()
            if attacks:
                weights[side & attack] = share / (1 - share) * others / attacks
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
    """The hardened guard; its calibration has a row of each round under `rounds`.

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
    for number in range(hardening.rounds + 1):
        guards = stack([FittedGuard("hardened", tensors, fitted.artifact.meta.settings)])
        limit = float(str(fitted.artifact.meta.settings["threshold"]))
        search = partial(
            _search,
            attacker,
            guards,
            limit,
            phrases,
            hardening,
            judged,
            seed + _SEEDS * (number + 1),
            progress,
        )
        found = kept.value(f"round-{number}", search)
        searched = _Searched(**found)
        rounds.append(_row(number, searched, fitted))
        if number == hardening.rounds or searched.found <= hardening.until * searched.searches:
            break
        lesson.add(image_model, searched, number)
        train = partial(_trained, tensors, lesson, hardening, progress)
        trained = kept.tensors(f"heads-{number}", train)
        tensors = tensors | {name: values.numpy() for name, values in trained.items()}
        fitted = calibrated(tensors)
    meta = fitted.artifact.meta
    calibration = {**meta.calibration, "hardened_from": artifact.digest, "rounds": rounds}
    meta = meta.model_copy(update={"calibration": calibration, "tensors_sha256": ""})
    return replace(fitted, artifact=Artifact(meta, dict(fitted.artifact.tensors)))


def _search(
    attacker: Attacker,
    guards: CgceGuards,
    limit: float,
    phrases: Sequence[str],
    hardening: Hardening,
    judged: JudgedAttempts | None,
    seed: int,
    progress: Stages,
) -> dict[str, Any]:
    """The fields of `_Searched`, of one search through the guard."""

    def score(text: Conditioning) -> Tensor:
        return guards.sense(text)[:, 0]

    attack = hardening.attack
    searches = attack.prompts + attack.words
    advance = progress("attacking the guard", searches)
    attempts = list(attacker.attempts(score, limit, phrases, seed=seed, advance=advance))
    found = [attempt for attempt in attempts if attempt.evades(limit)]
    if judged is not None:
        found = judged.shown(attacker.image_model, found, seed)
    prompts = list(dict.fromkeys(a.prompt for a in found if a.vectors is None))
    around = _around(attacker, prompts, hardening.neighbours, seed)
    alike = attacker.likeness(attacker.image_model.encode(around)).tolist() if around else []
    labelled = list(zip(around, alike, strict=True))
    return {
        "searches": searches,
        "prompts": prompts,
        "words": [a.vectors.tolist() for a in found if a.vectors is not None],
        # NaN is neither
        "unsafe": [text for text, value in labelled if value >= DRAWN],
        "safe": [text for text, value in labelled if value <= UNDRAWN],
    }


def _around(attacker: Attacker, prompts: Sequence[str], count: int, seed: int) -> list[str]:
    """Prompts of the same tokens but a few, `count` of each, and as many of random words."""
    generator = torch.Generator().manual_seed(seed + 1)
    rows = []
    for prompt in prompts:
        tokens = attacker.start(prompt, generator)
        for _ in range(count):
            changes = int(torch.randint(1, max(2, len(tokens) // 2 + 1), (), generator=generator))
            places = torch.randperm(len(tokens), generator=generator)[:changes]
            changed = tokens.clone()
            changed[places] = attacker.random(len(places), generator)
            rows.append(changed)
        rows += [attacker.start("", generator) for _ in range(count)]
    if not rows:
        return []
    texts, possible = typed(attacker.tokenizer, torch.stack(rows))
    new = (text for text, can_be in zip(texts, possible.tolist(), strict=True) if can_be)
    return [text for text in dict.fromkeys(new) if text not in prompts]


def _heads(tensors: Mapping[str, Any], stream: str) -> Heads:
    """The classifiers of a stream, one for each fold."""
    parts = {part: torch.from_numpy(np.array(tensors[f"{part}.{stream}"])) for part in PARTS}
    return Heads(**parts)


def _trained(
    tensors: Mapping[str, Any], lesson: _Lesson, hardening: Hardening, progress: Stages
) -> dict[str, Tensor]:
    """The tensors of all classifiers, each trained on without its fold."""
    unsafe, weights, recipe = lesson.unsafe, lesson.weights(hardening.share), hardening.recipe
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


def _row(number: int, searched: _Searched, fitted: Calibrated) -> dict[str, Any]:
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
