"""The attacks of a suite: made once, and kept as rows and tensors for all later runs.

Each attack on a concept (and through a method) has its own files in the suite's folder: the rows as
JSON Lines, which `guard eval images` can run too, and the tensors beside them, with a digest of
everything they were made from. An attack whose digest still matches is not made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.data.prompts import ImagePrompt, SceneImage
from guard.errors import DataError
from guard.evaluation.images import row_tensors
from guard.evaluation.images.generator import EngineImageGenerator
from guard.evaluation.m_erasure.guarded_loss import GuardedLoss
from guard.evaluation.m_erasure.inverted_noise import invert_through
from guard.evaluation.m_erasure.learned_words import TextualInversion, learn
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

WHITE_BOX = (LEARNED_WHITE, INVERTED_WHITE)


@dataclass(frozen=True)
class _Attack:
    """One attack on a concept; `method` is "" for a black-box attack.

    `number` tells the attacks of a concept apart, and `scenes` are the images it uses. `settings`
    are what the attack depends on beside these.
    """

    scenario: Scenario
    concept: str
    method: str
    number: int
    scenes: Sequence[SceneImage]
    settings: Sequence[object]

    @property
    def file_name(self) -> str:
        """The name of the attack's files, without a suffix."""
        parts = (self.scenario.name, self.concept, self.method, str(self.number))
        return "-".join(part for part in parts if part)

    def row(self, prompt: str, kept: Sequence[str], **tensors: object) -> ImagePrompt:
        """A row of the attack, with the names of its `word` or `noise`, and its `seed`."""
        fields = {"kind": self.scenario.name, "concept": self.concept, "against": self.method}
        return ImagePrompt.model_validate(fields | {"prompt": prompt, "kept": [*kept]} | tensors)


class Attacks:
    """The attacks of one suite on one loaded model; `scenes` are the images they may use.

    `tensors` are those of all rows that were made so far.
    """

    def __init__(
        self,
        suite: ErasureSuite,
        generator: EngineImageGenerator,
        scenes: Sequence[SceneImage],
        progress: Stages,
    ) -> None:
        self._suite, self._generator, self._progress = suite, generator, progress
        self._family = generator.family
        self._scenes = {
            concept: [scene for scene in scenes if scene.concept == concept]
            for concept in dict.fromkeys(scene.concept for scene in scenes)
        }
        self.tensors: dict[str, NDArray[np.float32]] = {}
        self._noise: dict[tuple[str, int, str], Arrays] = {}
        """Noise for methods with the same effect, by concept, first seed and effect."""

    def rows(self, scenario: Scenario) -> Iterator[ImagePrompt]:
        """The rows of a scenario, made if they are missing; none for text prompts.

        Raises DataError for images that cannot be used, or a model that cannot be attacked so.
        """
        makers: Mapping[Scenario, Callable[[Scenario, str, str], Iterator[ImagePrompt]]] = {
            LEARNED_BLACK: self._learned_rows,
            LEARNED_WHITE: self._learned_rows,
            INVERTED_BLACK: self._inverted_rows,
            INVERTED_WHITE: self._inverted_rows,
        }
        if scenario not in makers:
            return
        methods = self._suite.attacked_through if scenario in WHITE_BOX else ("",)
        for concept in self._scenes:
            for method in methods:
                yield from makers[scenario](scenario, concept, method)

    # -- learned embeddings -----------------------------------------------------------------------

    def _learned_rows(self, scenario: Scenario, concept: str, method: str) -> Iterator[ImagePrompt]:
        settings, scenes = self._suite.learned, self._scenes[concept]
        # a word is learned best from images of the concept alone
        alone = [scene for scene in scenes if not scene.kept] or scenes
        for number in range(settings.words):
            inversion = TextualInversion(
                vectors=settings.vectors,
                start=settings.start,
                steps=settings.steps,
                batch=settings.batch,
                rate=settings.rate,
                seed=number,
            )
            depends_on = [asdict(inversion), settings.evade if method else None]
            attack = _Attack(scenario, concept, method, number, alone, depends_on)
            (word,) = self._names(attack, partial(self._learn, attack, inversion))
            yield from self._keep(
                attack,
                [
                    # each word is used in prompts of both kinds
                    attack.row(*settings.prompt(index // settings.words, concept), word=word)
                    for index in range(number, self._suite.images, settings.words)
                ],
            )

    def _learn(self, attack: _Attack, inversion: TextualInversion) -> Arrays:
        latents = latents_of(self._family, attack.scenes)
        train = partial(learn, self._family, latents, inversion, stages=self._progress)
        if not attack.method:
            return [train().vectors.numpy()]
        plan = self._generator.plan(self._policy(attack.method, attack.concept))
        evade = self._suite.learned.evade
        with closing(GuardedLoss(self._family, self._generator.plans, plan, evade=evade)) as loss:
            return [train(loss=loss).vectors.numpy()]

    # -- inverted latents -------------------------------------------------------------------------

    def _inverted_rows(
        self, scenario: Scenario, concept: str, method: str
    ) -> Iterator[ImagePrompt]:
        settings, scenes = self._suite.inverted, self._scenes[concept][: self._suite.images]
        for start in range(0, len(scenes), settings.batch):
            batch = scenes[start : start + settings.batch]
            seeds = range(start, start + len(batch))
            depends_on: list[object] = [len(batch), start]
            if method:
                depends_on += [settings.steps, settings.rate, settings.evade, settings.near]
                depends_on.append(settings.drawing)
            number = start // settings.batch
            attack = _Attack(scenario, concept, method, number, batch, depends_on)
            names = self._names(attack, partial(self._invert, attack, seeds))
            if method and (effect := self._effect(attack)):
                self._noise[concept, start, effect] = [self.tensors[name] for name in names]
            yield from self._keep(
                attack,
                [
                    attack.row(scene.prompt, scene.kept, noise=name, seed=seed)
                    for name, scene, seed in zip(names, batch, seeds, strict=True)
                ],
            )

    def _effect(self, attack: _Attack) -> str | None:
        """The same string for methods with the same effect on all scenes of an attack.

        These are methods whose guards do not act on the scenes' prompts, and whose guards of images
        are the same. None for other methods.
        """
        prompts = [scene.prompt for scene in attack.scenes]
        policy = self._policy(attack.method, attack.concept)
        effects = self._generator.inspect(prompts, [policy] * len(prompts))
        same = all(effect.same for effect in effects)
        return f"late {effects[0].late}" if same and effects else None

    def _invert(self, attack: _Attack, seeds: range) -> Arrays:
        suite, family, scenes = self._suite, self._family, attack.scenes
        effect = self._effect(attack) if attack.method else None
        if effect and (noise := self._noise.get((attack.concept, seeds.start, effect))):
            return noise
        latents, prompts = latents_of(family, scenes), [scene.prompt for scene in scenes]
        advance = self._progress(f"inverting {attack.concept}", len(scenes))
        try:
            inverted = recovered_noise(
                family, latents, prompts, steps=suite.steps, batch=suite.batch
            )
        except ValueError as error:
            raise DataError(f"images cannot be inverted on this model: {error}") from error
        advance(len(scenes))
        if attack.method:
            settings = suite.inverted
            sampling = GuardedSampling(
                family,
                self._generator.plans,
                self._generator.plan(self._policy(attack.method, attack.concept)),
                steps=settings.drawing or suite.steps,
                guidance=suite.guidance,
                forward=None,
            )
            stage = f"inverting {attack.concept} through {attack.method}"
            with closing(sampling):
                inverted = invert_through(
                    family,
                    sampling,
                    latents,
                    inverted,
                    prompts,
                    seeds,
                    settings=settings,
                    advance=self._progress(stage, settings.steps),
                )
        return [row.float().cpu().numpy() for row in inverted]

    # -- files ------------------------------------------------------------------------------------

    def _names(self, attack: _Attack, make: Callable[[], Arrays]) -> tuple[str, ...]:
        """The names of an attack's tensors, which come from its file or are made now."""
        path = self._path(attack)
        digest = self._digest(attack)
        tensors, names, made_of = row_tensors.read(path) if path.exists() else ({}, (), "")
        if made_of != digest:
            made = make()
            names = row_tensors.write(path, made, digest)
            tensors = dict(zip(names, made, strict=True))
        self.tensors |= tensors
        return names

    def _keep(self, attack: _Attack, rows: list[ImagePrompt]) -> list[ImagePrompt]:
        """Write the rows of an attack beside its tensors; returns them."""
        lines = [row.model_dump_json(exclude_defaults=True) for row in rows]
        file = self._path(attack).with_suffix(".jsonl")
        write_text(file, "".join(f"{line}\n" for line in lines))
        return rows

    def _path(self, attack: _Attack) -> Path:
        return self._suite.attacks / f"{attack.file_name}.safetensors"

    def _digest(self, attack: _Attack) -> str:
        policy = self._policy(attack.method, attack.concept) if attack.method else None
        images = [[_hash(scene.image), scene.prompt] for scene in attack.scenes]
        parts = [self._generator.identity(policy), *attack.settings, *images]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _policy(self, method: str, concept: str) -> str:
        policy = self._suite.policy(method, concept)
        assert policy is not None
        return policy


def _hash(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
