"""Images for an evaluation, generated with the engine, the plans and the fallback of the server."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guard.artifact import Artifact
from guard.config.schema import Config, ModelConfig
from guard.errors import DataError, ModelError
from guard.evaluation.images.interface import Advance, GeneratedImage, PromptEffect
from guard.evaluation.images.row_tensors import RowTensors, Tensors
from guard.evaluation.images.suite import ImageSuite
from guard.evaluation.m_erasure.learned_words import WORD
from guard.models.sources import resolve_source
from guard.plans.base import finite
from guard.plans.fallback import Fallback, Next
from guard.plans.images import ImagePlan, ImagePlans
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.loading import load_pipeline
from steering.engines.diffusion.prompts import PromptGuarding
from steering.engines.diffusion.sampling.trajectories import GivenNoise
from steering.fingerprint import fingerprint
from steering.images.conditioning import Conditioning
from steering.images.embedding import ImageReading
from steering.methods import Gradient

_BARE = ImagePlan("", "observe", "closed", (), {})
"""The plan of the bare model, without guards."""


@dataclass(frozen=True, eq=False)
class _Settled:
    """A prompt whose guards have decided: their effect, and the state of the request."""

    effect: PromptEffect
    fallback: Fallback


class EngineImageGenerator:
    """An `ImageGenerator` over a DiffusionEngine, with every policy of a configuration.

    Raises GuardError where the model cannot be loaded or guards cannot be stacked.
    """

    def __init__(self, config: Config, suite: ImageSuite, family: Family) -> None:
        self._config, self._suite, self._family = config, suite, family
        self._plans = ImagePlans(config, family, name=suite.model)
        self._engine = DiffusionEngine(family, self._plans.stacks, capacity=suite.batch)
        self._prompts = PromptGuarding(family, self._plans.stacks)
        parts = {n: p for n, p in family.pipeline.components.items() if isinstance(p, nn.Module)}
        self._model = fingerprint(nn.ModuleDict(parts))
        self._settled: dict[tuple[str, str, str], _Settled] = {}
        self._tensors: dict[str, Tensor] = {}

    @classmethod
    def load(cls, config: Config, suite: ImageSuite) -> EngineImageGenerator:
        """With the suite's model: one of the configuration, an added model or a folder."""
        known = {entry.name: entry for entry in config.models}
        entry = known.get(suite.model) or ModelConfig(name="model", source=suite.model)
        try:
            pipeline = load_pipeline(
                resolve_source(entry.source), dtype=entry.dtype, device=entry.device
            )
            return cls(config, suite, family_of(pipeline))
        except ValueError as error:
            raise ModelError(f"model {suite.model!r}: {error}") from error

    @property
    def family(self) -> Family:
        return self._family

    @property
    def plans(self) -> ImagePlans:
        return self._plans

    def bring(self, tensors: Tensors) -> None:
        """Add the tensors that rows may name."""
        self._tensors |= {name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}

    def identity(self, policy: str | None) -> str:
        """A digest of the model, the parameters of its requests and the policy's guards."""
        model = [self._model, self._suite.steps, self._suite.guidance]
        if policy is None:
            return _digest(model)
        plan = self.plan(policy)
        artifacts = {guard.name: guard.artifact for guard in self._config.guards}
        guards = [
            [Artifact.load(artifacts[guard.name]).digest, guard.threshold, guard.strength]
            for guard in plan.guards
        ]
        return _digest([*model, guards, plan.action, plan.fallback, plan.replacement])

    def gradients(self, policies: Sequence[str]) -> dict[str, Gradient]:
        """How attackers differentiate the methods of the guards that the policies use."""
        guards = [guard for policy in policies for guard in self.plan(policy).guards]
        return {guard.method.name: guard.method.gradient for guard in guards}

    def calibrations(self, method: str, policies: Sequence[str]) -> list[Mapping[str, Any]]:
        """The calibrations of the artifacts of one method that the policies use."""
        names = {
            guard.name
            for policy in policies
            for guard in self.plan(policy).guards
            if guard.method.name == method
        }
        return [
            Artifact.load(guard.artifact).meta.calibration
            for guard in self._config.guards
            if guard.name in names
        ]

    def inspect(
        self,
        prompts: Sequence[str],
        policies: Sequence[str | None],
        brought: Sequence[RowTensors] = (),
    ) -> list[PromptEffect]:
        """The effect of each policy on its prompt; a prompt that fails closed counts as blocked."""
        words = [tensors.word for tensors in brought] or [""] * len(prompts)
        self._settle(prompts, words, policies)
        return [
            PromptEffect(same=True)
            if policy is None
            else self._settled[prompt, word, policy].effect
            for prompt, word, policy in zip(prompts, words, policies, strict=True)
        ]

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        policies: Sequence[str | None],
        advance: Advance,
        brought: Sequence[RowTensors] = (),
    ) -> list[GeneratedImage]:
        """The image of each prompt. Raises DataError for a prompt whose effect is blocked.

        Where a guard detects the concept in an image, the policy's replacement is generated.
        """
        brought = brought or [RowTensors()] * len(prompts)
        self._settle(prompts, [tensors.word for tensors in brought], policies)
        effects, fallbacks = [], []
        for prompt, tensors, policy in zip(prompts, brought, policies, strict=True):
            settled = self._settled_prompt(prompt, tensors, policy)
            effects.append(settled.effect)
            # a copy: readings of the image change it, and the prompt may be generated again
            fallbacks.append(copy(settled.fallback))
        images: list[GeneratedImage | None] = [None] * len(prompts)
        remaining = list(range(len(prompts)))
        while remaining:
            starts = [self._start(fallbacks[i], brought[i], seeds[i]) for i in remaining]
            try:
                rows = generated(self._engine, starts, advance)
            except ValueError as error:  # guards that cannot act on these images
                raise DataError(f"the images cannot be generated: {error}") from error
            next_of = {
                i: fallbacks[i].on_output(row.readings)
                for i, row in zip(remaining, rows, strict=True)
            }
            for i, row in zip(remaining, rows, strict=True):
                image = images[i] = _image(effects[i], row, next_of[i])
                effects[i] = image.effect
            remaining = [i for i in remaining if next_of[i] == "again"]
            advance = _no_progress
        return [image for image in images if image is not None]

    def _settled_prompt(self, prompt: str, brought: RowTensors, policy: str | None) -> _Settled:
        if policy is None:
            return _Settled(PromptEffect(same=True), Fallback(_BARE, prompt))
        settled = self._settled[prompt, brought.word, policy]
        if settled.effect.blocked:
            raise DataError(f"policy {policy!r} blocks {prompt!r}: it has no image")
        return settled

    def _start(self, fallback: Fallback, brought: RowTensors, seed: int) -> ImageStart:
        # a replacement uses none of the row's tensors: they may be the reason for it
        tensors = RowTensors() if fallback.replaced else brought
        return ImageStart(
            prompt=fallback.prompt,
            seed=seed,
            steps=self._suite.steps,
            guidance=self._suite.guidance,
            guards=fallback.guards,
            embeddings=self._learned(tensors.word),
            initial=GivenNoise(self._tensors[tensors.noise]) if tensors.noise else None,
        )

    def _learned(self, word: str) -> dict[str, Tensor]:
        return {WORD: self._tensors[word]} if word else {}

    def _settle(
        self, prompts: Sequence[str], words: Sequence[str], policies: Sequence[str | None]
    ) -> None:
        """Determine once the effect of each policy on each prompt."""
        keys = dict.fromkeys(zip(prompts, words, policies, strict=True))
        fresh = [(t, w, p) for t, w, p in keys if p is not None and (t, w, p) not in self._settled]
        for at in range(0, len(fresh), self._suite.batch):
            part = fresh[at : at + self._suite.batch]
            fallbacks = [Fallback(self.plan(policy), prompt) for prompt, _, policy in part]
            words_of = [word for _, word, _ in part]
            for key, settled in zip(part, self._decided(fallbacks, words_of), strict=True):
                self._settled[key] = settled

    @torch.no_grad()
    def _decided(self, fallbacks: Sequence[Fallback], words: Sequence[str]) -> list[_Settled]:
        """Let the guards of each prompt read it, again where the fallback starts again."""
        effects: list[PromptEffect | None] = [None] * len(fallbacks)
        remaining = list(range(len(fallbacks)))
        while remaining:
            part = [fallbacks[i] for i in remaining]
            guarded = self._prompts(
                [fallback.prompt for fallback in part],
                [fallback.guards for fallback in part],
                [self._learned("" if fallbacks[i].replaced else words[i]) for i in remaining],
            )
            changed = _changed(guarded.bare, guarded.applied.text).tolist()
            again = []
            for i, readings, touched in zip(
                remaining, guarded.applied.readings, changed, strict=True
            ):
                following = fallbacks[i].on_prompt(readings)
                first = effects[i]
                effect = self._effect(fallbacks[i].plan, readings, following, touched)
                if first is not None:
                    effect = replace(first, blocked=effect.blocked, late=effect.late)
                effects[i] = effect
                if following == "again":
                    again.append(i)
            remaining = again
        return [
            _Settled(effect, fallback)
            for effect, fallback in zip(effects, fallbacks, strict=True)
            if effect is not None
        ]

    def _effect(
        self,
        plan: ImagePlan,
        readings: Mapping[str, ImageReading],
        following: Next,
        touched: bool,
    ) -> PromptEffect:
        """The effect of a policy on a prompt, from the readings of its guards."""
        stacks, blocked = self._plans.stacks, following in ("block", "fail")
        later = {name for stack in stacks.guidance for name in stack.names} | {*stacks.overlays}
        acts_later = any(plan.acts and readings[name].fired for name in later & set(readings))
        return PromptEffect(
            same=following == "go" and not touched and not acts_later,
            late="" if blocked else _late(plan),
            fired=any(reading.fired for reading in readings.values()),
            blocked=blocked,
            **_figures(readings),
        )

    def plan(self, policy: str) -> ImagePlan:
        """The plan of a policy. Raises DataError for an unknown, GuardFailed for a broken one."""
        try:
            plan = self._plans[policy]
        except KeyError:
            raise DataError(f"the configuration has no policy {policy!r}") from None
        plan.require_whole()
        plan.require_fit(self._suite.model)
        return plan


@dataclass(frozen=True, eq=False)
class CompletedRow:
    """An image, the readings of its row's guards, and the mask of their writes."""

    image: NDArray[np.uint8]
    readings: Mapping[str, ImageReading]
    mask: NDArray[np.float32] | None


def generated(
    engine: DiffusionEngine, starts: Sequence[ImageStart], advance: Advance
) -> list[CompletedRow]:
    """The images of all `starts`, in order, with the engine's capacity filled as rows complete."""
    waiting = deque(enumerate(starts))
    live: list[int] = []
    done: dict[int, CompletedRow] = {}
    engine.reset()
    while waiting or live:
        room = min(engine.capacity - engine.rows, len(waiting))
        joining = [waiting.popleft() for _ in range(room)]
        if joining:
            engine.start([start for _, start in joining])
            live += [index for index, _ in joining]
        complete = engine.step()
        if not complete:
            continue
        images = engine.images(complete)
        for row, image in zip(complete, images, strict=True):
            done[live[row]] = CompletedRow(image, engine.readings(row), _union(engine.masks(row)))
        for source, target in engine.drop(complete):
            live[target] = live[source]
        del live[engine.rows :]
        advance(len(complete))
    return [done[i] for i in range(len(starts))]


def _image(effect: PromptEffect, row: CompletedRow, following: Next) -> GeneratedImage:
    """The effect on a prompt once its guards have read the image, which may be blocked."""
    late = [reading for reading in row.readings.values() if reading.position and reading.fired]
    effect = replace(
        effect,
        same=effect.same and following == "go" and not any(reading.steps for reading in late),
        fired=effect.fired or bool(late),
        blocked=following != "go",
        **_figures({**row.readings}),
    )
    firing = tuple(name for name, reading in row.readings.items() if reading.fired)
    return GeneratedImage(effect, None if effect.blocked else row.image, row.mask, firing)


def _no_progress(_count: int) -> None:
    """A replacement does not count as a further image of the run."""


def _late(plan: ImagePlan) -> str:
    """A digest of a plan's guards of images and their actions; empty where it has none."""
    if not plan.inspects_images:
        return ""
    of_prompts = plan.prompt_rows()
    of_images = [asdict(row) for row in plan.rows() if row not in of_prompts]
    # the plan's other guards read its replacement too
    replacement = [plan.replacement, plan.policy] if plan.replacement else []
    return _digest([of_images, plan.on_error, plan.fallback, *replacement])


def _union(masks: Mapping[str, Tensor]) -> NDArray[np.float32] | None:
    """The union of the masks of all guards, and of all frames of a video."""
    if not masks:
        return None
    images = torch.stack(
        [mask.flatten(0, -3).amax(0) if mask.ndim > 2 else mask for mask in masks.values()]
    )
    union: NDArray[np.float32] = images.amax(0).cpu().numpy()
    return union


def _changed(before: Conditioning, after: Conditioning) -> Tensor:
    """`[rows]`: whether any bit of a row's states differs."""
    differs = [
        (states != after.states[name]).flatten(1).any(1) for name, states in before.states.items()
    ]
    return torch.stack(differs).any(0)


def _figures(readings: Mapping[str, ImageReading]) -> dict[str, Any]:
    """Steps, score and score afterwards of the guard with the largest score."""
    if not readings:
        return {}
    most = max(readings.values(), key=lambda reading: reading.score)
    return {"steps": most.steps, "score": finite(most.score), "after": most.after}


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
