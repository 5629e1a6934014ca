"""Drawing for an evaluation: the engine, the plans and the fallbacks that the server has."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
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
from guard.plans.images import Decision, ImagePlan, ImagePlans
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.loading import load_pipeline
from steering.engines.diffusion.placeholders import Learned
from steering.engines.diffusion.sampling.trajectories import GivenNoise
from steering.fingerprint import fingerprint
from steering.images.conditioning import Conditioning
from steering.images.embedding import ImageReading

_BARE = ImagePlan("", "observe", "closed", (), {})
"""Of the bare model: no guards."""


@dataclass(frozen=True)
class _Settled:
    """What a policy made of a prompt: how it looks, what is drawn of it, with what guards.

    `plan` is what decides of the image, and `brought` what is drawn with the prompt: nothing
    where it is `replaced` by the policy's own.
    """

    look: PromptEffect
    prompt: str
    plan: ImagePlan
    brought: RowTensors = RowTensors()
    replaced: bool = False


class EngineImageGenerator:
    """An ImageGenerator on a DiffusionEngine, with every policy of a configuration.

    Raises GuardError where the model cannot be loaded or guards cannot be stacked.
    """

    def __init__(self, config: Config, suite: ImageSuite, family: Family) -> None:
        self._config, self._suite, self._family = config, suite, family
        self._plans = ImagePlans(config, family, name=suite.model)
        self._engine = DiffusionEngine(
            family,
            self._plans.bank,
            capacity=suite.batch,
            guides=self._plans.guides,
            finished=self._plans.finished,
            erasers=self._plans.erasers,
            overlays=self._plans.overlays,
        )
        parts = {n: p for n, p in family.pipeline.components.items() if isinstance(p, nn.Module)}
        self._model = fingerprint(nn.ModuleDict(parts))
        self._settled: dict[tuple[str, str, str], _Settled] = {}
        self._tensors: dict[str, Tensor] = {}

    @classmethod
    def load(cls, config: Config, suite: ImageSuite) -> EngineImageGenerator:
        """With the suite's model: one that the configuration names, an added one or a folder."""
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
        """Take in what prompts may bring, by name."""
        self._tensors |= {name: torch.from_numpy(each.copy()) for name, each in tensors.items()}

    def identity(self, policy: str | None) -> str:
        """Of the model, how it is asked, and everything that the policy's guards are."""
        asked = [self._model, self._suite.steps, self._suite.guidance]
        if policy is None:
            return _digest(asked)
        plan = self.plan(policy)
        artifacts = {guard.name: guard.artifact for guard in self._config.guards}
        guards = [
            [Artifact.load(artifacts[guard.name]).digest, guard.threshold, guard.strength]
            for guard in plan.guards
        ]
        return _digest([*asked, guards, plan.action, plan.fallback, plan.replacement])

    def calibrations(self, method: str, policies: Sequence[str]) -> list[Mapping[str, Any]]:
        """What the artifacts of one kind that the policies use tell of their fits."""
        names = {
            guard.name
            for policy in policies
            for guard in self.plan(policy).guards
            if guard.method == method
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
        """What each prompt's policy makes of it; a prompt that fails closed counts as blocked."""
        words = [each.word for each in brought] or [""] * len(prompts)
        self._settle(prompts, words, policies)
        return [
            PromptEffect(same=True) if policy is None else self._settled[prompt, word, policy].look
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
        """What comes of each prompt. Raises DataError for one that `inspect` says is blocked.

        Where a guard finds the concept in an image, the policy's replacement is drawn.
        """
        brought = brought or [RowTensors()] * len(prompts)
        self._settle(prompts, [each.word for each in brought], policies)
        asked = [
            self._asked(prompt, each, policy)
            for prompt, each, policy in zip(prompts, brought, policies, strict=True)
        ]
        starts = [self._start(one, seed) for one, seed in zip(asked, seeds, strict=True)]
        found = drawn(self._engine, starts, advance)
        made = [_came(one, each) for one, each in zip(asked, found, strict=True)]
        late = {i: again for i, one in enumerate(asked) if (again := self._late(one, found[i]))}
        starts = [self._start(again, seeds[i]) for i, again in late.items()]
        replaced = drawn(self._engine, starts, lambda _count: None)
        for (i, again), each in zip(late.items(), replaced, strict=True):
            made[i] = _came(replace(again, look=made[i].effect), each)
        return made

    def _asked(self, prompt: str, brought: RowTensors, policy: str | None) -> _Settled:
        if policy is None:
            return _Settled(PromptEffect(same=True), prompt, _BARE, brought)
        settled = self._settled[prompt, brought.word, policy]
        if settled.look.blocked:
            raise DataError(f"policy {policy!r} blocks {prompt!r}: it has no image")
        # a replacement shows nothing of what was brought: that may be what is to be replaced
        return settled if settled.replaced else replace(settled, brought=brought)

    def _late(self, asked: _Settled, found: CompletedRow) -> _Settled | None:
        """What is drawn where the image decides for the policy's replacement."""
        plan = asked.plan
        if plan.decide(found.readings) != "replace" or plan.replacement is None:
            return None
        again = self._replaced(plan, plan.replacement, asked.look)
        return None if again.look.blocked else again

    def _start(self, asked: _Settled, seed: int) -> ImageStart:
        noise = asked.brought.noise
        return ImageStart(
            prompt=asked.prompt,
            seed=seed,
            steps=self._suite.steps,
            guidance=self._suite.guidance,
            guards=asked.plan.rows(),
            embeddings=self._learned(asked.brought.word),
            beginning=GivenNoise(self._tensors[noise]) if noise else None,
        )

    def _learned(self, word: str) -> dict[str, Tensor]:
        return {WORD: self._tensors[word]} if word else {}

    def _settle(
        self, prompts: Sequence[str], words: Sequence[str], policies: Sequence[str | None]
    ) -> None:
        """Find out once what each policy makes of each prompt."""
        asked = dict.fromkeys(zip(prompts, words, policies, strict=True))
        fresh = [(t, w, p) for t, w, p in asked if p is not None and (t, w, p) not in self._settled]
        for at in range(0, len(fresh), self._suite.batch):
            part = fresh[at : at + self._suite.batch]
            plans = [self.plan(policy) for _, _, policy in part]
            learned = [self._learned(word) for _, word, _ in part]
            looked = self._looked([prompt for prompt, _, _ in part], plans, learned)
            for key, plan, (look, decision) in zip(part, plans, looked, strict=True):
                if decision == "replace" and plan.replacement is not None:
                    self._settled[key] = self._replaced(plan, plan.replacement, look)
                else:
                    self._settled[key] = _Settled(look, key[0], plan)

    def _replaced(self, plan: ImagePlan, replacement: str, look: PromptEffect) -> _Settled:
        """The replacement is drawn, unless it does not pass either."""
        ((again, _),) = self._looked([replacement], [plan.last], [{}])
        late = "" if again.blocked else look.late
        look = replace(look, blocked=again.blocked, late=late)
        return _Settled(look, replacement, plan.last, replaced=True)

    @torch.no_grad()
    def _looked(
        self,
        prompts: Sequence[str],
        plans: Sequence[ImagePlan],
        learned: Sequence[Learned],
    ) -> list[tuple[PromptEffect, Decision]]:
        text = self._family.encode(prompts, learned)
        rows = [plan.prompt_rows() for plan in plans]
        applied = self._plans.bank.apply(text, rows, self._family.overflow(prompts, learned))
        changed = _changed(text, applied.text).tolist()
        inside = {name for guide in self._plans.guides for name in guide.names}
        inside |= {*self._plans.overlays.names}
        found = []
        for plan, readings, touched in zip(plans, applied.readings, changed, strict=True):
            decision = plan.decide(readings)
            guided = any(plan.acts and readings[name].fired for name in inside & set(readings))
            look = PromptEffect(
                same=decision == "draw" and not touched and not guided,
                late="" if decision in ("block", "fail") else _late(plan),
                fired=any(reading.fired for reading in readings.values()),
                blocked=decision in ("block", "fail"),
                **_figures(readings),
            )
            found.append((look, decision))
        return found

    def plan(self, policy: str) -> ImagePlan:
        """Of a policy. Raises DataError for an unknown one, GuardFailed for a broken one."""
        try:
            plan = self._plans[policy]
        except KeyError:
            raise DataError(f"the configuration has no policy {policy!r}") from None
        plan.require_whole()
        plan.require_fit(self._suite.model)
        return plan


@dataclass(frozen=True, eq=False)
class CompletedRow:
    """An image, what the guards of its row have read, and where they have written."""

    image: NDArray[np.uint8]
    readings: Mapping[str, ImageReading]
    mask: NDArray[np.float32] | None


def drawn(
    engine: DiffusionEngine, starts: Sequence[ImageStart], advance: Advance
) -> list[CompletedRow]:
    """The images of all `starts`, in order, in as few batches as the engine's capacity takes."""
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


def _came(asked: _Settled, found: CompletedRow) -> GeneratedImage:
    """How a prompt looks now that its guards have seen the image, which may be blocked."""
    decision = asked.plan.decide(found.readings)
    late = [told for told in found.readings.values() if told.position and told.fired]
    look = replace(
        asked.look,
        same=asked.look.same and decision == "draw" and not any(told.steps for told in late),
        fired=asked.look.fired or bool(late),
        blocked=decision != "draw",
        **_figures({**found.readings}),
    )
    return GeneratedImage(look, None if look.blocked else found.image, found.mask)


def _late(plan: ImagePlan) -> str:
    """What a plan's guards of images are and do, empty where it has none."""
    if not plan.screens:
        return ""
    read = plan.prompt_rows()
    looking = [asdict(row) for row in plan.rows() if row not in read]
    # the plan's other guards read its replacement too
    drawn = [plan.replacement, plan.policy] if plan.replacement else []
    return _digest([looking, plan.on_error, plan.fallback, *drawn])


def _union(masks: Mapping[str, Tensor]) -> NDArray[np.float32] | None:
    """Of all guards, and of all frames of a video."""
    if not masks:
        return None
    every = torch.stack(
        [mask.flatten(0, -3).amax(0) if mask.ndim > 2 else mask for mask in masks.values()]
    )
    found: NDArray[np.float32] = every.amax(0).cpu().numpy()
    return found


def _changed(before: Conditioning, after: Conditioning) -> Tensor:
    """`[rows]`: whether any bit of a row's states differs."""
    each = [
        (states != after.states[name]).flatten(1).any(1) for name, states in before.states.items()
    ]
    return torch.stack(each).any(0)


def _figures(readings: Mapping[str, ImageReading]) -> dict[str, Any]:
    """Steps, score and score afterwards of the guard that says most."""
    if not readings:
        return {}
    most = max(readings.values(), key=lambda reading: reading.score)
    return {"steps": most.steps, "score": finite(most.score), "after": most.after}


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
