"""Making the attacks of a suite: each once, kept as rows and tensors that are played from then on.

An attack on one concept (and through one method) has files of its own in the suite's folder: the
rows as JSON Lines, which `guard eval images` plays too, and the tensors beside them, which say
what they were made of. What is there and still holds is not made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from guard.data.prompts import ImagePrompt, SceneImage
from guard.errors import DataError
from guard.evaluation.images import row_tensors
from guard.evaluation.images.generator import EngineImageGenerator
from guard.evaluation.m_erasure.guarded_loss import GuardedLoss
from guard.evaluation.m_erasure.inverted_noise import invert_through
from guard.evaluation.m_erasure.learned_words import Loss, TextualInversion, learn
from guard.evaluation.m_erasure.sampling import GuardedSampling
from guard.evaluation.m_erasure.scenarios import (
    INVERTED_BLACK,
    INVERTED_WHITE,
    LEARNED_BLACK,
    LEARNED_WHITE,
    Scenario,
)
from guard.evaluation.m_erasure.scenes import latents_of
from guard.evaluation.m_erasure.suite import ErasureSuite
from guard.reporting.page import write_text
from guard.reporting.progress import Stages
from steering.engines.diffusion.sampling.noise_recovery import recovered_noise

Arrays = list[NDArray[np.float32]]


class Attacks:
    """The attacks of one suite on one loaded model; `scenes` are those that may be used.

    `tensors` has what the rows that were made so far bring.
    """

    def __init__(
        self,
        suite: ErasureSuite,
        drawer: EngineImageGenerator,
        scenes: Sequence[SceneImage],
        progress: Stages,
    ) -> None:
        self._suite, self._drawer, self._progress = suite, drawer, progress
        self._family = drawer.family
        self._scenes = {
            concept: [scene for scene in scenes if scene.concept == concept]
            for concept in dict.fromkeys(scene.concept for scene in scenes)
        }
        self.tensors: dict[str, NDArray[np.float32]] = {}
        self._through: dict[tuple[str, int, str], Arrays] = {}  # found so far

    def rows(self, scenario: Scenario) -> Iterator[ImagePrompt]:
        """The rows of a scenario, made where they are missing. None for text prompts.

        Raises DataError for images that cannot be used, or a model that cannot be attacked so.
        """
        makers: Mapping[Scenario, Callable[[str, str], Iterator[ImagePrompt]]] = {
            LEARNED_BLACK: partial(self._learned, LEARNED_BLACK),
            LEARNED_WHITE: partial(self._learned, LEARNED_WHITE),
            INVERTED_BLACK: partial(self._inverted, INVERTED_BLACK),
            INVERTED_WHITE: partial(self._inverted, INVERTED_WHITE),
        }
        if scenario not in makers:
            return
        white = scenario in (LEARNED_WHITE, INVERTED_WHITE)
        for concept in self._scenes:
            for method in self._suite.attacked_through if white else ("",):
                yield from makers[scenario](concept, method)

    # -- learned embeddings -----------------------------------------------------------------------

    def _learned(self, scenario: Scenario, concept: str, method: str) -> Iterator[ImagePrompt]:
        settings, every = self._suite.learned, self._scenes[concept]
        # a word is learned best from images of nothing else
        scenes = [scene for scene in every if not scene.kept] or every
        for number in range(settings.words):
            own = TextualInversion(
                vectors=settings.vectors,
                start=settings.start,
                steps=settings.steps,
                batch=settings.batch,
                rate=settings.rate,
                seed=number,
            )
            about = [asdict(own), settings.evade if method else None]
            numbers = range(number, self._suite.images, settings.words)

            def rows(names: Sequence[str], numbers: range = numbers) -> list[ImagePrompt]:
                found = []
                for at in numbers:
                    # each word stands in prompts of both kinds
                    prompt, kept = settings.prompt(at // settings.words, concept)
                    found.append(_row(scenario, concept, method, prompt, kept, word=names[0]))
                return found

            make = partial(self._learn, scenes, own, concept, method)
            yield from self._kept(scenario, concept, method, number, scenes, about, make, rows)

    def _learn(
        self, scenes: Sequence[SceneImage], own: TextualInversion, concept: str, method: str
    ) -> Arrays:
        latents = latents_of(self._family, scenes)
        if not method:
            return [self._word(latents, own, None)]
        plan = self._drawer.plan(self._policy(method, concept))
        evade = self._suite.learned.evade
        with closing(GuardedLoss(self._family, self._drawer.plans, plan, evade=evade)) as loss:
            return [self._word(latents, own, loss)]

    def _word(
        self, latents: Tensor, own: TextualInversion, loss: Loss | None
    ) -> NDArray[np.float32]:
        found = learn(self._family, latents, own, loss=loss, stages=self._progress)
        vectors: NDArray[np.float32] = found.vectors.numpy()
        return vectors

    # -- inverted latents -------------------------------------------------------------------------

    def _inverted(self, scenario: Scenario, concept: str, method: str) -> Iterator[ImagePrompt]:
        settings, every = self._suite.inverted, self._scenes[concept][: self._suite.images]
        for at in range(0, len(every), settings.batch):
            scenes, seeds = every[at : at + settings.batch], range(at, at + settings.batch)
            about: list[Any] = [len(scenes), at]
            if method:
                about += [settings.steps, settings.rate, settings.evade, settings.near]
                about.append(settings.drawing)

            def rows(
                names: Sequence[str],
                scenes: Sequence[SceneImage] = scenes,
                seeds: range = seeds,
            ) -> list[ImagePrompt]:
                return [
                    _row(scenario, concept, method, s.prompt, s.kept, noise=name, seed=seed)
                    for name, s, seed in zip(names, scenes, seeds, strict=False)
                ]

            make = partial(self._invert, scenes, seeds, concept, method)
            number = at // settings.batch
            made = self._kept(scenario, concept, method, number, scenes, about, make, rows)
            if method and (alike := self._alike(concept, method, scenes)):
                self._through[concept, at, alike] = [self.tensors[row.noise] for row in made]
            yield from made

    def _alike(self, concept: str, method: str, scenes: Sequence[SceneImage]) -> str | None:
        """The same for methods that do the same to all these scenes: those whose guards of prompts
        find nothing in theirs, and that look at the image alike."""
        prompts = [scene.prompt for scene in scenes]
        looks = self._drawer.look(prompts, [self._policy(method, concept)] * len(prompts))
        same = all(look.same for look in looks)
        return f"late {looks[0].late}" if same and looks else None

    def _invert(
        self, scenes: Sequence[SceneImage], seeds: range, concept: str, method: str
    ) -> Arrays:
        suite, family = self._suite, self._family
        alike = self._alike(concept, method, scenes) if method else None
        if alike and (made := self._through.get((concept, seeds.start, alike))) is not None:
            return made
        latents, prompts = latents_of(family, scenes), [scene.prompt for scene in scenes]
        advance = self._progress(f"inverting {concept}", len(scenes))
        try:
            noise = recovered_noise(family, latents, prompts, steps=suite.steps, batch=suite.batch)
        except ValueError as error:
            raise DataError(f"images cannot be inverted on this model: {error}") from error
        advance(len(scenes))
        if method:
            settings = suite.inverted
            sampling = GuardedSampling(
                family,
                self._drawer.plans,
                self._drawer.plan(self._policy(method, concept)),
                steps=settings.drawing or suite.steps,
                guidance=suite.guidance,
                forward=None,
            )
            with closing(sampling):
                noise = invert_through(
                    family,
                    sampling,
                    latents,
                    noise,
                    prompts,
                    seeds[: len(scenes)],
                    steps=settings.steps,
                    rate=settings.rate,
                    evade=settings.evade,
                    near=settings.near,
                    advance=self._progress(f"inverting {concept} through {method}", settings.steps),
                )
        return [each.float().cpu().numpy() for each in noise]

    # -- what is kept -----------------------------------------------------------------------------

    def _kept(
        self,
        scenario: Scenario,
        concept: str,
        method: str,
        number: int,
        scenes: Sequence[SceneImage],
        about: Sequence[object],
        make: Callable[[], Arrays],
        rows: Callable[[Sequence[str]], list[ImagePrompt]],
    ) -> list[ImagePrompt]:
        """The rows of one attack, its tensors from its file or made now."""
        name = "-".join(part for part in (scenario.name, concept, method, str(number)) if part)
        path = self._suite.attacks / f"{name}.safetensors"
        digest = self._digest(concept, method, scenes, about)
        tensors, order, made_of = row_tensors.read(path) if path.exists() else ({}, (), "")
        if made_of != digest:
            made = make()
            order = row_tensors.write(path, made, digest)
            tensors = dict(zip(order, made, strict=True))
        self.tensors |= tensors
        found = rows(order)
        lines = [row.model_dump_json(exclude_defaults=True) for row in found]
        write_text(path.with_suffix(".jsonl"), "".join(f"{line}\n" for line in lines))
        return found

    def _digest(
        self,
        concept: str,
        method: str,
        scenes: Sequence[SceneImage],
        about: Sequence[object],
    ) -> str:
        policy = self._policy(method, concept) if method else None
        images = [[_hash(scene.image), scene.prompt] for scene in scenes]
        parts = [self._drawer.identity(policy), *about, *images]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _policy(self, method: str, concept: str) -> str:
        policy = self._suite.policy(method, concept)
        assert policy is not None
        return policy


def _row(
    scenario: Scenario,
    concept: str,
    method: str,
    prompt: str,
    kept: Sequence[str],
    **brings: object,
) -> ImagePrompt:
    fields = {"kind": scenario.name, "concept": concept, "against": method}
    return ImagePrompt.model_validate(fields | {"prompt": prompt, "kept": [*kept]} | brings)


def _hash(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
