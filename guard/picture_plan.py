"""Policies resolved against one picture model: which guards act on its prompts and its guidance.

Needs torch (through steering): imported where a model is, never by `import guard`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

import torch
from torch import nn

from guard.artifact import Artifact
from guard.config import Config, GuardConfig
from guard.errors import ArtifactError
from guard.resolving import BasePlan, Done, LoadedGuard, Resolved, find_guards, finite, resolve
from guard.verdict import GuardVerdict
from steering.conditioning import Conditioning
from steering.fingerprint import fingerprint
from steering.guided import Guide
from steering.methods.embedding import EmbeddingGuard
from steering.methods.screens import SCREENS
from steering.prompted import PromptBank, PromptReading, Screen

Decision = Literal["draw", "block", "replace", "fail"]


@dataclass(frozen=True)
class PicturePlan(BasePlan[PromptReading]):
    """A policy for one picture model."""

    @property
    def guides(self) -> bool:
        """Whether a guard may act on the guidance, which takes a scale of more than 1."""
        return self.acts and any(guard.action == "steer" for guard in self.guards)

    @property
    def last(self) -> PicturePlan:
        """The plan of a replacement: where that does not pass either, it is blocked."""
        return replace(self, fallback="block", replacement=None)

    def decide(self, readings: Mapping[str, PromptReading]) -> Decision:
        """What becomes of a row, from what its guards read on the prompt.

        "fail": a guard could not be applied, and the policy fails closed.
        """
        if self.on_error == "closed" and any(not reading.valid for reading in readings.values()):
            return "fail"
        done = {
            self.done(guard, reading)
            for guard in self.guards
            if (reading := readings.get(guard.name)) is not None and reading.fired
        }
        return "block" if "block" in done else "replace" if "replace" in done else "draw"

    def done(self, guard: LoadedGuard, reading: PromptReading) -> Done:
        """What is done for a reading that has fired.

        Nothing where only what the encoder cuts off has the concept: it is not drawn anyway.
        """
        if not self.acts:
            return super().done(guard, reading)
        if not reading.resolved:
            return self.fallback
        untouched = reading.steps == 0 and reading.after is None
        return "none" if guard.action == "refine" and untouched else guard.action

    def _told(self, guard: LoadedGuard, reading: PromptReading, done: Done) -> GuardVerdict:
        return GuardVerdict(
            guard=guard.name,
            concept=guard.concept,
            method=guard.method,
            score=finite(reading.score),
            threshold=reading.threshold,
            fired=reading.fired,
            action=done,
            position=0 if reading.fired else None,
            error=None if reading.valid else "the guard met NaN in the prompt's embedding",
            steps=reading.steps,
            after=reading.after,
        )


class Encodes(Protocol):
    """What plans need of a family: see `steering.engines.diffusion.families`."""

    @property
    def encoders(self) -> Mapping[str, nn.Module]: ...

    def encode(self, prompts: Sequence[str]) -> Conditioning: ...


class PicturePlans(Resolved[PicturePlan]):
    """The guards that fit one picture model, stacked, and every policy resolved against them.

    `bank` has all of them; `guides` are those of its screens that act on the guidance. A guard that
    does not fit stays out and breaks the policies that name it. Raises ArtifactError where guards
    that fit one by one cannot be stacked.
    """

    def __init__(self, config: Config, family: Encodes, *, name: str) -> None:
        self.model = name
        with torch.no_grad():
            text = family.encode([""])
        device = next(iter(text.states.values())).device

        def load(setting: GuardConfig, artifact: Artifact) -> tuple[LoadedGuard, EmbeddingGuard]:
            return _guard(setting, artifact, text)

        served = fingerprint(nn.ModuleDict(dict(family.encoders)))
        found = find_guards(config.guards, "pictures", served, name, load)
        screens = _screens(list(found.fit.values()), device)
        self.bank = PromptBank(screens)
        self.guides = tuple(cast(Guide, screen) for screen in screens if _guides(screen))
        loaded = {guard: fitted for guard, (fitted, _) in found.fit.items()}
        super().__init__(
            {
                policy: resolve(PicturePlan, policy, config.policy(policy), loaded, found)
                for policy in config.policy_names
            }
        )


def _guides(screen: Screen) -> bool:
    return hasattr(screen, "term")


def _guard(
    setting: GuardConfig, artifact: Artifact, text: Conditioning
) -> tuple[LoadedGuard, EmbeddingGuard]:
    """`text` is what the model's encoders give for some prompt: it must take the guard."""
    meta = artifact.meta
    guard = EmbeddingGuard(setting.name, artifact.tensors, meta.settings)
    if meta.method not in SCREENS:
        raise ValueError(f"unknown method {meta.method!r}: this release has {', '.join(SCREENS)}")
    screen = SCREENS[meta.method]([guard], next(iter(text.states.values())).device)
    _try(screen, text)
    loaded = LoadedGuard(
        name=setting.name,
        concept=meta.concept,
        method=meta.method,
        action="steer" if _guides(screen) else "refine",
        threshold=guard.number("threshold") if setting.threshold is None else setting.threshold,
        strength=guard.number("strength") if setting.strength is None else setting.strength,
    )
    return loaded, guard


def _try(screen: Screen, text: Conditioning) -> None:
    """Raise ValueError where a guard cannot sense or act on what the encoders give."""
    score = torch.zeros(text.rows, 1, device=next(iter(text.states.values())).device)
    try:
        with torch.no_grad():
            screen.sense(text)
            screen.act(text, score == 0, score, score + 1)
    except Exception as error:  # some run on other libraries than torch
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"it does not fit what the model's encoders give ({reason})") from error
    if _guides(screen):
        concepts = cast(Guide, screen).concepts.states
        for name, states in text.states.items():
            if name not in concepts or concepts[name].shape[1:] != states.shape[1:]:
                raise ValueError(f"its concept is not of the shape of the model's stream {name!r}")


def _screens(
    fitted: Sequence[tuple[LoadedGuard, EmbeddingGuard]], device: torch.device
) -> list[Screen]:
    methods: dict[str, list[EmbeddingGuard]] = {}
    for loaded, guard in fitted:
        methods.setdefault(loaded.method, []).append(guard)
    try:
        return [SCREENS[method](guards, device) for method, guards in methods.items()]
    except ValueError as error:
        raise ArtifactError(str(error)) from error
