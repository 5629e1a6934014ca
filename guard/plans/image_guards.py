"""The guards of a configuration that fit one image model, loaded and stacked by their seams.

Needs torch (through steering): imported where a model is, never by `import guard`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol, cast

import torch
from torch import nn

from guard.artifact import Artifact, ArtifactMeta
from guard.config.schema import Config, GuardConfig
from guard.errors import ArtifactError, FingerprintError, ModelError
from guard.plans.base import LoadedGuard, find_guards
from steering.engines.diffusion.seams.attention import require_reads
from steering.engines.diffusion.seams.projections import overlaid_layers, text_projections
from steering.fingerprint import fingerprint
from steering.images.conditioning import Conditioning
from steering.images.embedding import EmbeddingBank, EmbeddingGuards
from steering.images.guidance import GuidanceGuards
from steering.images.latent import LatentGuards
from steering.images.output import OutputBank, OutputGuards
from steering.images.projection import OverlayBank, OverlayGuards
from steering.methods.fitted import FittedGuard
from steering.methods.image_methods import ERASERS, IMAGE_SCREENS, SCREENS

MethodAction = Literal["steer", "overlay", "refine", "perturb", "block"]
"""What a guard does by itself."""


class GuardedPipeline(Protocol):
    """What guards need of a family: see `steering.engines.diffusion.families`."""

    @property
    def encoders(self) -> Mapping[str, nn.Module]: ...

    @property
    def denoiser(self) -> nn.Module: ...

    def cross_attention(self) -> Sequence[tuple[str, nn.Module]]: ...

    @property
    def autoencoder(self) -> nn.Module: ...

    @property
    def networks(self) -> Mapping[str, nn.Module]: ...

    @property
    def readable(self) -> Mapping[str, nn.Module]: ...

    @property
    def channels(self) -> int: ...

    def encode(self, prompts: Sequence[str]) -> Conditioning: ...


class ImageGuards:
    """`bank` has all guards that read the prompt; `guides` are those of its screens that act on the
    guidance, `overlays` has those that act on the denoiser's projections; `finished` has those that
    look at finished images, `erasers` those that write to the latents on their way.

    Raises ArtifactError where guards that fit one by one cannot be stacked.
    """

    def __init__(self, config: Config, family: GuardedPipeline, *, name: str) -> None:
        self._name, self._family = name, family
        self.found = find_guards(config, "images", name, self._loaded)
        fitted = list(self.found.fit.values())
        screens = _stacked(SCREENS, fitted, self._device)
        self.bank = EmbeddingBank(screens)
        self.guides = tuple(cast(GuidanceGuards, screen) for screen in screens if _guides(screen))
        self.overlays = _overlaid(screens, self._device)
        self.finished = OutputBank(_stacked(IMAGE_SCREENS, fitted, self._device))
        self.erasers: tuple[LatentGuards, ...] = tuple(_stacked(ERASERS, fitted, self._device))

    @cached_property
    def _text(self) -> Conditioning:
        """What the model's encoders give for some prompt: it must take the guards."""
        with torch.no_grad():
            return self._family.encode([""])

    @property
    def _device(self) -> torch.device:
        return next(iter(self._text.states.values())).device

    @cached_property
    def _encoders(self) -> str:
        return fingerprint(nn.ModuleDict(dict(self._family.encoders)))

    @cached_property
    def _denoiser(self) -> str:
        return fingerprint(self._family.denoiser)

    @cached_property
    def _autoencoder(self) -> str:
        return fingerprint(self._family.autoencoder)

    @cached_property
    def _pipeline(self) -> str:
        return fingerprint(nn.ModuleDict(dict(self._family.networks)))

    def _loaded(self, setting: GuardConfig, artifact: Artifact) -> tuple[LoadedGuard, FittedGuard]:
        meta = artifact.meta
        guard = FittedGuard(setting.name, artifact.tensors, meta.settings)
        if meta.method in IMAGE_SCREENS:
            artifact.require_model(self._autoencoder, served=self._name)
            self._require_channels(IMAGE_SCREENS[meta.method]([guard], "cpu"), setting.name)
            return _of(setting, meta, guard, "block"), guard
        if meta.method in ERASERS:
            artifact.require_model(self._pipeline, served=self._name)
            eraser = ERASERS[meta.method]([guard], "cpu")
            self._require_channels(eraser, setting.name)
            self._require_reads(eraser, setting.name)
            return _of(setting, meta, guard, "perturb"), guard
        if meta.method not in SCREENS:
            known = ", ".join([*SCREENS, *IMAGE_SCREENS, *ERASERS])
            raise ValueError(f"unknown method {meta.method!r}: this release has {known}")
        screen = SCREENS[meta.method]([guard], self._device)
        if _overlays(screen):
            self._require_denoiser(artifact, guard)
            overlaid_layers(
                self._family.cross_attention(), OverlayBank([cast(OverlayGuards, screen)])
            )
            _try(screen, self._text)
            return _of(setting, meta, guard, "overlay"), guard
        artifact.require_model(self._encoders, served=self._name)
        _try(screen, self._text)
        return _of(setting, meta, guard, "steer" if _guides(screen) else "refine"), guard

    def _require_channels(self, guard: OutputGuards | LatentGuards, name: str) -> None:
        if guard.channels != self._family.channels:
            raise ValueError(
                f"guard {name}: takes latents of {guard.channels} channels, the model's have "
                f"{self._family.channels}"
            )

    def _require_reads(self, guard: LatentGuards, name: str) -> None:
        try:
            require_reads(self._family.readable, [read for own in guard.reads for read in own])
        except ValueError as error:
            raise ValueError(f"guard {name}: {error}") from error

    def _require_denoiser(self, artifact: Artifact, guard: FittedGuard) -> None:
        """An edit is of a denoiser's projections, made from what its encoders give."""
        try:
            text_projections(self._family.cross_attention())
        except ValueError as error:
            raise ModelError(f"guard {guard.name} cannot act on {self._name!r}: {error}") from error
        artifact.require_model(self._denoiser, served=self._name)
        fitted = str(guard.settings.get("encoders"))
        if fitted != self._encoders:
            raise FingerprintError(
                f"guard for {artifact.meta.concept!r} was fitted on other text encoders ({fitted}) "
                f"than those of {self._name!r} ({self._encoders}): fit it on that model"
            )


def _of(
    setting: GuardConfig, meta: ArtifactMeta, guard: FittedGuard, action: MethodAction
) -> LoadedGuard:
    strength = 1.0 if action == "block" else setting.strength
    return LoadedGuard(
        name=setting.name,
        concept=meta.concept,
        method=meta.method,
        action=action,
        threshold=guard.number("threshold") if setting.threshold is None else setting.threshold,
        strength=guard.number("strength") if strength is None else strength,
    )


def _guides(screen: EmbeddingGuards) -> bool:
    return hasattr(screen, "term")


def _overlaid(screens: Sequence[EmbeddingGuards], device: torch.device) -> OverlayBank:
    try:
        return OverlayBank([cast(OverlayGuards, own) for own in screens if _overlays(own)], device)
    except ValueError as error:
        raise ArtifactError(str(error)) from error


def _overlays(screen: EmbeddingGuards) -> bool:
    return hasattr(screen, "overlays")


def _try(screen: EmbeddingGuards, text: Conditioning) -> None:
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
        concepts = cast(GuidanceGuards, screen).concepts.states
        for name, states in text.states.items():
            if name not in concepts or concepts[name].shape[1:] != states.shape[1:]:
                raise ValueError(f"its concept is not of the shape of the model's stream {name!r}")


def _stacked(
    registry: Mapping[str, Any],
    fitted: Sequence[tuple[LoadedGuard, FittedGuard]],
    device: torch.device,
) -> list[Any]:
    """One screen for each method of `registry` that the guards are of."""
    methods: dict[str, list[FittedGuard]] = {}
    for loaded, guard in fitted:
        if loaded.method in registry:
            methods.setdefault(loaded.method, []).append(guard)
    try:
        return [registry[method](guards, device) for method, guards in methods.items()]
    except ValueError as error:
        raise ArtifactError(str(error)) from error
