"""Images for an evaluation, which a language model writes, with the plans of the server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from guard.artifact import Artifact
from guard.config.schema import Config
from guard.errors import DataError
from guard.evaluation.images.interface import Advance, GeneratedImage, PromptEffect
from guard.evaluation.images.row_tensors import RowTensors
from guard.evaluation.images.suite import ImageSuite
from guard.models.token_images import TokenImageModel
from guard.plans.base import finite
from guard.plans.language import LanguagePlan, LanguagePlans
from steering.engines.transformers.offline import Answer
from steering.hidden.rows import Reading, RowGuard
from steering.prompt import Prompt


class TokenImageGenerator:
    """An `ImageGenerator` over a language model, with every policy of a configuration.

    Guards decide on prompts; whether one fires is known once the prompt is read.
    """

    def __init__(self, config: Config, suite: ImageSuite, model: TokenImageModel) -> None:
        self._config, self._suite, self._model = config, suite, model
        self._plans = LanguagePlans(config, model.chat.model, name=suite.model)
        self._effects: dict[tuple[str, str], PromptEffect] = {}

    @classmethod
    def load(cls, config: Config, suite: ImageSuite) -> TokenImageGenerator:
        """With the suite's model: one of the configuration, an added model or a folder."""
        known = {entry.name: entry for entry in config.models}
        entry = known.get(suite.model)
        source = suite.model if entry is None else entry.source
        device = "auto" if entry is None else entry.device
        return cls(config, suite, TokenImageModel.load(source, device=device))

    def identity(self, policy: str | None) -> str:
        """See `ImageGenerator.identity`."""
        images = self._model.images
        parts: list[object] = [self._plans.served.fingerprint, images.identity]
        if policy is not None:
            plan = self._plan(policy)
            artifacts = {guard.name: guard.artifact for guard in self._config.guards}
            parts += [
                [
                    Artifact.load(artifacts[guard.name]).digest,
                    guard.threshold,
                    guard.strength,
                    guard.recheck,
                    plan.action_of(guard),
                ]
                for guard in plan.guards
            ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def inspect(
        self,
        prompts: Sequence[str],
        policies: Sequence[str | None],
        tensors: Sequence[RowTensors] = (),
    ) -> list[PromptEffect]:
        """See `ImageGenerator.inspect`. Raises DataError for prompts that bring tensors."""
        if any(each.word or each.noise for each in tensors):
            raise DataError(f"{self._suite.model!r} takes no learned words and no noise")
        asked = dict.fromkeys(zip(prompts, policies, strict=True))
        fresh = [(p, policy) for p, policy in asked if policy and (p, policy) not in self._effects]
        for at in range(0, len(fresh), self._suite.batch):
            part = fresh[at : at + self._suite.batch]
            read = self._draw([p for p, _ in part], [0] * len(part), [w for _, w in part], 1)
            for (prompt, policy), answer in zip(part, read, strict=True):
                self._effects[prompt, policy] = _effect(self._plan(policy), answer.readings)
        return [
            PromptEffect(same=True) if policy is None else self._effects[prompt, policy]
            for prompt, policy in zip(prompts, policies, strict=True)
        ]

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        policies: Sequence[str | None],
        advance: Advance,
        tensors: Sequence[RowTensors] = (),
    ) -> list[GeneratedImage]:
        """See `ImageGenerator.generate`."""
        effects = self.inspect(prompts, policies, tensors)
        drawn = self._draw(prompts, seeds, policies, None, advance)
        result = []
        for effect, policy, answer, pixels in zip(
            effects, policies, drawn, self._model.pixels(drawn), strict=True
        ):
            blocked = policy is not None and self._plan(policy).ending(answer.readings) is not None
            firing = tuple(name for name, reading in answer.readings.items() if reading.fired)
            result.append(
                GeneratedImage(
                    replace(effect, blocked=blocked), None if blocked else pixels, firing=firing
                )
            )
        return result

    def _draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        policies: Sequence[str | None],
        tokens: int | None,
        advance: Advance = lambda _images: None,
    ) -> list[Answer]:
        asked: list[Prompt] = [self._model.chat.prompt(prompt) for prompt in prompts]
        guards: list[tuple[RowGuard, ...]] = [
            () if policy is None else self._plan(policy).rows() for policy in policies
        ]
        return self._model.draw(
            asked, seeds, bank=self._plans.bank, guards=guards, tokens=tokens, advance=advance
        )

    def _plan(self, policy: str) -> LanguagePlan:
        """The plan of a policy. Raises DataError for an unknown, GuardFailed for a broken one."""
        try:
            plan = self._plans[policy].without_sentences()
        except KeyError:
            raise DataError(f"the configuration has no policy {policy!r}") from None
        plan.require_whole()
        plan.require_fit(self._suite.model)
        return plan


def _effect(plan: LanguagePlan, readings: dict[str, Reading]) -> PromptEffect:
    """What a policy does to a prompt, by the readings of its guards."""
    acting = {row.name for row in plan.rows() if row.acts}
    most = max((reading.score for reading in readings.values()), default=0.0)
    return PromptEffect(
        same=not any(reading.fired and name in acting for name, reading in readings.items()),
        fired=any(reading.fired for reading in readings.values()),
        blocked=plan.ending(readings) is not None,
        score=finite(most),
    )
