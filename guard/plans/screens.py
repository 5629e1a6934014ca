"""Policies resolved to screens of text: the places that they read, and their actions.

Imports no torch: a proxy runs screens where there is none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, cast, get_args

import numpy as np

from classifiers.text.encoder.model import TextEncoder
from classifiers.text.heads import Floats
from classifiers.text.patterns.matching import PatternSet
from guard.artifact import Artifact
from guard.config.kinds import kind_of
from guard.config.pattern_lists import read_patterns
from guard.config.schema import (
    PLACES,
    Config,
    GuardConfig,
    OnError,
    PatternsConfig,
    Place,
    ScreenConfig,
)
from guard.config.schema import TextAction as Action
from guard.errors import ArtifactError, GuardError, GuardFailed, ModelError, PolicyUnfit
from guard.models.sources import resolve_source
from steering.methods import Method, method_named
from steering.methods.fitted import FittedGuard

logger = logging.getLogger(__name__)

ENCODER = "minilm"
"""The added model that embeds text for all heads."""

CHANGES: frozenset[Action] = frozenset({"redact", "route", "policy"})
"""Actions that change the request before it is sent."""


_ACTIONS = get_args(Action)
_ELSEWHERE = (
    "run it with `guard serve` or the vLLM plugin (a policy may delegate to an upstream's with "
    "upstream_policy), or choose a policy of screens"
)


@dataclass(frozen=True)
class TextScreen:
    """A screen in a policy: a head (its column in the scores), or a list of patterns."""

    name: str
    concept: str
    method: str
    threshold: float
    action: Action
    head: int | None = None
    patterns: PatternSet | None = None
    places: frozenset[Place] = frozenset(PLACES)
    """The places whose text the screen reads."""


@dataclass(frozen=True)
class TextPlan:
    """The screens of a policy. `broken` has the guards that cannot be applied, and the reasons;
    `unfit` is True where these are all, since each acts inside a model that does not run here."""

    policy: str
    on_error: OnError
    settings: ScreenConfig
    screens: tuple[TextScreen, ...]
    broken: Mapping[str, str]
    message: str | None = None
    """The text that is read in place of a blocked answer."""
    unfit: bool = False

    @property
    def active(self) -> bool:
        """Whether the policy has any screen of text, or a guard that cannot be applied."""
        return bool(self.screens or self.broken)

    @cached_property
    def lists(self) -> tuple[TextScreen, ...]:
        """The screens that are patterns, which need no encoder."""
        return tuple(screen for screen in self.screens if screen.head is None)

    @cached_property
    def changes(self) -> bool:
        """Whether a screen may change the request."""
        return any(screen.action in CHANGES for screen in self.screens)

    @cached_property
    def longest(self) -> int:
        """Characters of the longest match of a pattern."""
        return max(
            (screen.patterns.longest for screen in self.screens if screen.patterns), default=0
        )

    @cached_property
    def by_places(self) -> Mapping[frozenset[Place], Sequence[TextScreen]]:
        """The screens by the places that they read."""
        screens: dict[frozenset[Place], list[TextScreen]] = {}
        for screen in self.screens:
            screens.setdefault(screen.places, []).append(screen)
        return screens

    @cached_property
    def answering(self) -> tuple[TextScreen, ...]:
        """The screens that read responses."""
        return tuple(screen for screen in self.screens if "response" in screen.places)

    @cached_property
    def answering_patterns(self) -> PatternSet | None:
        """All patterns that read responses as one list; None where there are none."""
        lists = [screen.patterns for screen in self.answering if screen.patterns is not None]
        return PatternSet.joined(lists) if lists else None

    def passes(self, name: str) -> bool:
        """Whether `name`, a path or a kind of content, may pass unread."""
        return any(
            name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
            for pattern in self.settings.unscreened
        )

    def require_whole(self) -> None:
        """Raise where a guard cannot be applied and the policy fails closed: PolicyUnfit where the
        policy has no other, GuardFailed where it has."""
        if self.unfit and self.on_error == "closed":
            raise PolicyUnfit(
                f"all guards of the policy {self.policy!r} ({', '.join(self.broken)}) act inside "
                f"a model, which a proxy does not run: {_ELSEWHERE}",
                param="guard.policy",
            )
        if self.broken and self.on_error == "closed":
            faults = "; ".join(f"{name}: {why}" for name, why in self.broken.items())
            raise GuardFailed(f"policy {self.policy!r} cannot be applied: {faults}")


class EmbeddingScores(Protocol):
    """What the methods of the seam "text" make of their guards: scores of sentence embeddings."""

    def scores(self, embeddings: Floats) -> Floats:
        """Probabilities `[n, guards]`, float32, of `embeddings [n, width]`."""


class TextScores:
    """The guards of all methods, in one matrix of scores."""

    def __init__(self, stacks: Sequence[EmbeddingScores]) -> None:
        self._stacks = tuple(stacks)

    def scores(self, embeddings: Floats) -> Floats:
        """Probabilities `[n, guards]`, float32, of `embeddings [n, width]`."""
        return np.concatenate([stack.scores(embeddings) for stack in self._stacks], axis=1)


class TextPlans:
    """Every policy of a configuration, and all heads that they share.

    `encoder` is loaded where a head needs it, else None. A screen that does not load breaks the
    policies that name it. Guards of models are for whatever runs the model; where nothing behind
    the screens does (`runs_models` False, a proxy), they break their policies too, except those
    that the plugin of an upstream applies.
    """

    def __init__(
        self,
        config: Config,
        load_encoder: Callable[[], TextEncoder] | None = None,
        *,
        runs_models: bool = True,
    ) -> None:
        self._runs_models = runs_models
        self._broken: dict[str, str] = {}
        self._inside: set[str] = set()
        self._heads: dict[str, TextScreen] = {}
        artifacts = self._artifacts(config.guards)
        self.encoder: TextEncoder | None = None
        self.heads: TextScores | None = None
        if artifacts:
            self._load_heads(artifacts, load_encoder or _added_encoder)
        self._lists = self._patterns(config.patterns)
        self._plans = {name: self._plan(config, name) for name in config.policy_names}
        self.active = any(plan.active for plan in self._plans.values())
        """Whether any policy screens text."""

    def __getitem__(self, policy: str) -> TextPlan:
        """Raises KeyError for a policy that is not configured."""
        return self._plans[policy]

    @property
    def screens(self) -> Sequence[TextScreen]:
        """All screens that can be applied, as fitted, with the action "observe"."""
        return [*self._heads.values(), *self._lists.values()]

    def _artifacts(self, settings: Sequence[GuardConfig]) -> list[tuple[GuardConfig, Artifact]]:
        loaded = []
        for setting in settings:
            try:
                artifact = Artifact.load(setting.artifact)
            except ArtifactError as error:
                self._fails(setting.name, error.message)
                continue
            if kind_of(artifact.meta) == "text":
                loaded.append((setting, artifact))
            else:
                self._inside.add(setting.name)
        return loaded

    def _load_heads(
        self,
        artifacts: Sequence[tuple[GuardConfig, Artifact]],
        load_encoder: Callable[[], TextEncoder],
    ) -> None:
        try:
            self.encoder = load_encoder()
        except GuardError as error:
            for setting, _ in artifacts:
                self._fails(setting.name, error.message)
            return
        fitted: dict[Method, list[FittedGuard]] = {}
        for setting, artifact in artifacts:
            meta = artifact.meta
            guard = FittedGuard(setting.name, artifact.tensors, meta.settings)
            try:
                artifact.require_model(self.encoder.fingerprint, served=ENCODER)
                method = method_named(meta.method)
                method.stacked([guard])
                method.require_in_range({"threshold": setting.threshold}, setting.name)
                threshold = _threshold(meta.settings)
                places = _places(meta.settings)
            except (GuardError, ValueError) as error:
                self._fails(setting.name, f"{setting.artifact}: {error}")
                continue
            self._heads[setting.name] = TextScreen(
                name=setting.name,
                concept=meta.concept,
                method=meta.method,
                threshold=threshold if setting.threshold is None else setting.threshold,
                action="observe",
                places=places,
            )
            fitted.setdefault(method, []).append(guard)
        if fitted:
            self.heads = TextScores([method.stacked(guards) for method, guards in fitted.items()])
            names = [guard.name for guards in fitted.values() for guard in guards]
            for column, name in enumerate(names):
                self._heads[name] = replace(self._heads[name], head=column)

    def _patterns(self, settings: Sequence[PatternsConfig]) -> dict[str, TextScreen]:
        screens = {}
        for setting in settings:
            try:
                patterns = read_patterns(setting.source)
            except GuardError as error:
                self._fails(setting.name, error.message)
                continue
            screens[setting.name] = TextScreen(
                name=setting.name,
                concept=f"patterns/{setting.name}",
                method="patterns",
                threshold=1.0,
                action="observe",
                patterns=patterns,
            )
        return screens

    def _fails(self, name: str, why: str) -> None:
        self._broken[name] = why
        logger.warning("the screen %s cannot be applied: %s", name, why)

    def _plan(self, config: Config, name: str) -> TextPlan:
        policy = config.policy(name)
        known = {**self._heads, **self._lists}
        guards = [guard for guard in policy.guards if guard in known]
        shadows = {setting.name for setting in config.guards if setting.shadow}
        broken = {guard: self._broken[guard] for guard in policy.guards if guard in self._broken}
        inside = [] if self._runs_models or config.delegates(name) else self._inside
        elsewhere = {
            guard: f"acts inside a model, which a proxy does not run: {_ELSEWHERE}"
            for guard in policy.guards
            if guard in inside
        }
        # an action that screens do not have is for the policy's guards of models
        default = cast(Action, policy.action) if policy.action in _ACTIONS else "block"
        return TextPlan(
            policy=name,
            on_error=policy.on_error,
            settings=policy.screen,
            screens=tuple(
                replace(
                    known[guard],
                    action="observe"
                    if guard in shadows
                    else policy.screen.actions.get(guard) or default,
                    places=frozenset(
                        policy.screen.looks.get(guard) or policy.screen.look or known[guard].places
                    ),
                )
                for guard in guards
            ),
            message=policy.message,
            broken=broken | elsewhere,
            unfit=bool(elsewhere) and not guards and not broken,
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


def _added_encoder() -> TextEncoder:
    try:
        return TextEncoder.load(resolve_source(ENCODER))
    except ValueError as error:
        raise ModelError(str(error)) from error
