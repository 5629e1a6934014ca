"""Policies resolved to screens of text and of images: the places that they read, and their actions.

Imports no torch: a proxy runs screens where there is none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar, cast, get_args

from classifiers.text.cascade import Cascade
from classifiers.text.disguises.unreadable import unreadable
from classifiers.text.disguises.views import PLAIN
from classifiers.text.encoder.model import TextEncoder
from classifiers.text.entities.recognizer import EntityRecognizer
from classifiers.text.patterns.matching import Match, PatternSet
from guard.artifact import Artifact
from guard.config.kinds import kind_of
from guard.config.pattern_checks import ENTITIES
from guard.config.pattern_lists import read_patterns
from guard.config.policy_schema import IMAGE_ACTIONS, PLACES, OnError, Place, ScreenConfig
from guard.config.policy_schema import TextAction as Action
from guard.config.schema import Config, GuardConfig, PatternsConfig
from guard.errors import ArtifactError, GuardError, GuardFailed, PolicyUnfit
from guard.plans.entities import load_recognizer
from guard.plans.heads import Head, Heads, Loaded
from guard.plans.image_screens import ImageClassifiers, load_classifiers, load_ocr
from guard.plans.text_encoders import added_encoder, encoder_for

logger = logging.getLogger(__name__)

CHANGES: frozenset[Action] = frozenset({"redact", "route", "policy"})
"""Actions that change the request before it is sent."""
OCR = "screen.ocr"
"""The name in verdicts of what reads text in images, where it cannot be loaded."""
S = TypeVar("S", "TextScreen", "ImageScreen")
_ACTIONS = get_args(Action)
_ELSEWHERE = (
    "run it with `guard serve` or the vLLM plugin (a policy may delegate to an upstream's with "
    "upstream_policy), or choose a policy of screens"
)


@dataclass(frozen=True)
class Screen:
    """A screen in a policy: a head is its column in the scores."""

    name: str
    concept: str
    method: str
    threshold: float
    action: Action
    head: int | None = None
    places: frozenset[Place] = frozenset(PLACES)
    """The places whose texts or images the screen reads."""
    first_stage: bool = False
    """Whether a text may be cleared without the encoder, its score being an estimate."""

    def fires(self, score: float) -> bool:
        """A classifier fires above its threshold, as it was calibrated; what has none scores 0
        where it finds nothing."""
        return score > (self.threshold if self.head is not None else 0.0)

    def done(self, *, in_response: bool) -> Action:
        """The action where it fires: a response can no longer be routed or delegated."""
        return "flag" if in_response and self.action in {"route", "policy"} else self.action


@dataclass(frozen=True)
class TextScreen(Screen):
    """A screen of texts: a head, a list of patterns, a recogniser of entities, or with none of them
    the detector of unreadable text."""

    patterns: PatternSet | None = None
    entities: EntityRecognizer | None = None

    @property
    def needs_model(self) -> bool:
        """Whether a model reads the text, which takes long and may fail."""
        return self.head is not None or self.entities is not None

    def find(self, text: str) -> list[Match]:
        """The matches of a screen that is no head."""
        if self.patterns is not None:
            return self.patterns.find(text)
        if self.entities is not None:
            return self.entities.find(text)
        return [Match(start, end, "UNREADABLE", PLAIN) for start, end in unreadable(text)]


@dataclass(frozen=True)
class ImageScreen(Screen):
    """A screen of images: a head on the image encoder of that name."""

    encoder: str = ""


@dataclass(frozen=True)
class TextPlan:
    """The screens of a policy, `screens` of texts and `images`. `broken` has the guards that cannot
    be applied, and the reasons; `unfit` is True where these are all, since each acts inside a model
    that does not run here."""

    policy: str
    on_error: OnError
    settings: ScreenConfig
    screens: tuple[TextScreen, ...]
    broken: Mapping[str, str]
    message: str | None = None
    """The text that is read in place of a blocked answer."""
    unfit: bool = False
    images: tuple[ImageScreen, ...] = ()
    keep_text: bool = False
    watching: frozenset[str] = frozenset()
    """Guards that run for the shadow alone."""
    joined: Callable[[tuple[PatternSet, ...]], PatternSet] = PatternSet.joined
    """Makes one list of several."""

    @property
    def active(self) -> bool:
        """Whether the policy has any screen, or a guard that cannot be applied."""
        return bool(self.screens or self.images or self.broken)

    @property
    def all_screens(self) -> tuple[Screen, ...]:
        """The screens of texts and of images."""
        return (*self.screens, *self.images)

    def reads_images(self, place: Place) -> bool:
        """Whether images at `place` are read, by a classifier or for the text in them."""
        return any(place in screen.places for screen in self.images) or self.reads_text_in(place)

    def reads_text_in(self, place: Place) -> bool:
        """Whether the text in images at `place` is read."""
        return self.settings.ocr and any(place in screen.places for screen in self.screens)

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
        return self.joined(tuple(lists)) if lists else None

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


class TextPlans:
    """Every policy of a configuration, and all heads that they share.

    `encoder` is loaded where a head on texts needs it, else None, `cascade` runs the heads on it,
    and `images` is there where a policy reads images. A screen that does not load breaks the
    policies that name it. Guards of models are for whatever runs the model; where nothing behind
    the screens does (`runs_models` False, a proxy), they break their policies too, except those
    that the plugin of an upstream applies.
    """

    def __init__(
        self,
        config: Config,
        load_encoder: Callable[[str], TextEncoder] = added_encoder,
        *,
        runs_models: bool = True,
    ) -> None:
        self._runs_models = runs_models
        self._broken: dict[str, str] = {}
        self._inside: set[str] = set()
        self._heads: dict[str, TextScreen] = {}
        self._images: dict[str, ImageScreen] = {}
        artifacts = self._artifacts(config.guards)
        self.encoder: TextEncoder | None = None
        self.cascade: Cascade | None = None
        if artifacts["text"]:
            self._load_heads(artifacts["text"], load_encoder)
        self._lists = self._patterns(config.patterns)
        # shared by all plans to come: a set takes time to make, and megabytes once it has read
        self._joined = lru_cache(maxsize=16)(PatternSet.joined)
        self.images = self._load_images(config, artifacts["pixels"])
        self._config = config
        self._plans = {name: self._plan(config, name) for name in config.policy_names}

    def __getitem__(self, policy: str) -> TextPlan:
        """Raises KeyError for a policy that is not configured."""
        return self._plans[policy]

    @cached_property
    def active(self) -> bool:
        """Whether any policy screens text or images."""
        return any(plan.active for plan in self._plans.values())

    @property
    def any_screens(self) -> bool:
        """Whether there are screens, in policies or for policies to come, which must be refused
        where they name one that cannot be applied."""
        return bool(self.active or self.screens or self._images or self._broken)

    def under(self, config: Config) -> TextPlans:
        """The same screens, under the policies of another configuration."""
        plans = copy(self)
        plans.__dict__.pop("active", None)
        plans._config = config
        plans._plans = {name: plans._plan(config, name) for name in config.policy_names}
        return plans

    @property
    def screens(self) -> Sequence[TextScreen]:
        """All screens that can be applied, as fitted, with the action "observe"."""
        return [*self._heads.values(), *self._lists.values()]

    @property
    def image_screens(self) -> Sequence[ImageScreen]:
        """All screens of images that can be applied, as fitted, with the action "observe"."""
        return list(self._images.values())

    def _artifacts(
        self, settings: Sequence[GuardConfig]
    ) -> dict[str, list[tuple[GuardConfig, Artifact]]]:
        """The guards that are screens, by their kinds."""
        loaded: dict[str, list[tuple[GuardConfig, Artifact]]] = {"text": [], "pixels": []}
        for setting in settings:
            try:
                artifact = Artifact.load(setting.artifact)
            except ArtifactError as error:
                self._fails(setting.name, error.message)
                continue
            kind = kind_of(artifact.meta)
            if kind in loaded:
                loaded[kind].append((setting, artifact))
            else:
                self._inside.add(setting.name)
        return loaded

    def _load_heads(self, artifacts: Loaded, load_encoder: Callable[[str], TextEncoder]) -> None:
        name = encoder_for(artifact for _, artifact in artifacts)
        try:
            self.encoder = load_encoder(name)
        except GuardError as error:
            for setting, _ in artifacts:
                self._fails(setting.name, error.message)
            return
        heads = Heads(artifacts, self.encoder.fingerprint, name, self._fails)
        if heads.all:
            self.cascade = Cascade(self.encoder, heads, heads.first)
        self._heads = {head.name: TextScreen(**_of_head(head)) for head in heads.all}

    def _load_images(self, config: Config, artifacts: Loaded) -> ImageClassifiers | None:
        classifiers, heads = load_classifiers(artifacts, self._fails)
        self._images = {
            head.name: ImageScreen(**_of_head(head), encoder=encoder) for encoder, head in heads
        }
        ocr = None
        if any(policy.screen.ocr for policy in config.policies.values()):
            try:
                ocr = load_ocr()
            except GuardError as error:
                self._fails(OCR, error.message)
        return ImageClassifiers(classifiers, ocr) if classifiers or ocr is not None else None

    def _patterns(self, settings: Sequence[PatternsConfig]) -> dict[str, TextScreen]:
        screens = {}
        for setting in settings:
            is_list = setting.source != ENTITIES
            try:
                patterns = read_patterns(setting.source) if is_list else None
                entities = None if is_list else load_recognizer(setting)
            except GuardError as error:
                self._fails(setting.name, error.message)
                continue
            screens[setting.name] = TextScreen(
                name=setting.name,
                concept=f"patterns/{setting.name}",
                method="patterns" if is_list else "entities",
                threshold=1.0,
                action="observe",
                patterns=patterns,
                entities=entities,
            )
        return screens

    def _fails(self, name: str, why: str) -> None:
        self._broken[name] = why
        logger.warning("the screen %s cannot be applied: %s", name, why)

    def _plan(self, config: Config, name: str) -> TextPlan:
        policy = config.policy(name)
        known = {**self._heads, **self._lists}
        guards = [guard for guard in policy.guards if guard in known]
        images = [guard for guard in policy.guards if guard in self._images]
        shadows = {setting.name for setting in config.guards if setting.shadow}
        shadows |= {*policy.only_observed}
        needed = [*policy.guards, *([OCR] if policy.screen.ocr else [])]
        broken = {guard: self._broken[guard] for guard in needed if guard in self._broken}
        ocr = None if self.images is None else self.images.ocr
        if policy.screen.ocr and OCR not in broken and ocr is None:
            broken[OCR] = "what reads text in images is not loaded: restart the server"
        inside = [] if self._runs_models or config.delegates(name) else self._inside
        elsewhere = {
            guard: f"acts inside a model, which a proxy does not run: {_ELSEWHERE}"
            for guard in policy.guards
            if guard in inside
        }
        # an action that screens do not have is for the policy's guards of models
        default = cast(Action, policy.action) if policy.action in _ACTIONS else "block"

        def set_up(screen: S) -> S:
            action = policy.screen.actions.get(screen.name) or default
            if isinstance(screen, ImageScreen) and action not in IMAGE_ACTIONS:
                action = "block"
            threshold = policy.thresholds.get(screen.name, screen.threshold)
            looks = policy.screen.looks
            if policy.shadow is not None and screen.name in policy.only_observed:
                threshold = policy.shadow.thresholds.get(screen.name, screen.threshold)
                looks = policy.shadow.screen.looks
            return replace(
                screen,
                action="observe" if screen.name in shadows else action,
                threshold=threshold,
                # the first stage was cut for the threshold of the guard
                first_stage=policy.screen.first_stage and threshold >= screen.threshold,
                places=frozenset(looks.get(screen.name) or policy.screen.look or screen.places),
            )

        def beside(own: tuple[S, ...], screens: Mapping[str, S]) -> tuple[S, ...]:
            # of places that only the shadow reads no request may be treated otherwise for it
            read = frozenset[Place]().union(*(screen.places for screen in own))
            more = [set_up(screens[guard]) for guard in policy.only_observed if guard in screens]
            clipped: list[S] = [replace(screen, places=screen.places & read) for screen in more]
            return own + tuple(screen for screen in clipped if screen.places)

        return TextPlan(
            policy=name,
            on_error=policy.on_error,
            settings=policy.screen,
            screens=beside(tuple(set_up(known[guard]) for guard in guards), known),
            images=beside(tuple(set_up(self._images[guard]) for guard in images), self._images),
            watching=frozenset(policy.only_observed),
            message=policy.message,
            keep_text=policy.keep_text,
            joined=self._joined,
            broken=broken | elsewhere,
            unfit=bool(elsewhere) and not guards and not images and not broken,
        )


def _of_head(head: Head) -> dict[str, Any]:
    """The fields of a screen that is a head, as fitted."""
    fields: dict[str, Any] = {"name": head.name, "concept": head.concept, "method": head.method}
    fields |= {"threshold": head.threshold, "head": head.column, "places": head.places}
    return fields | {"action": "observe"}
