"""The guards of a configuration that fit one image model, loaded and stacked by their seams.

Needs torch (through steering): imported where a model is, never by `import guard`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import nn

from guard.artifact import Artifact
from guard.config.schema import Config, GuardConfig
from guard.errors import FingerprintError, ModelError
from guard.plans.base import LoadedGuard
from guard.plans.selection import select_guards
from steering.engines.diffusion.fit import GuardedPipeline, require_fit, require_supported
from steering.engines.errors import UnsupportedModel
from steering.fingerprint import fingerprint
from steering.images.conditioning import Conditioning
from steering.images.stacks import ImageStacks
from steering.methods import Part, method_named
from steering.methods.fitted import FittedGuard
from steering.methods.stacking import MethodGuard


class ImageGuards:
    """`selection` has the guards that fit the model, and why others do not; `stacks` has those that
    fit."""

    def __init__(self, config: Config, pipeline: GuardedPipeline, *, name: str) -> None:
        self._name, self._pipeline = name, pipeline
        self._fingerprints: dict[Part, str] = {}
        self.selection = select_guards(config, "images", name, self._load)
        guards = [guard for _, guard in self.selection.fit.values()]
        self.stacks = ImageStacks.of(guards, self._device)

    @cached_property
    def _text(self) -> Conditioning:
        """The conditioning of the empty prompt, on which guards are tried."""
        with torch.no_grad():
            return self._pipeline.encode([""])

    @property
    def _device(self) -> torch.device:
        return next(iter(self._text.states.values())).device

    def _load(self, setting: GuardConfig, artifact: Artifact) -> tuple[LoadedGuard, MethodGuard]:
        method = method_named(artifact.meta.method)
        if method.kind != "images":
            raise ValueError(f"the method {method.name!r} is not for image models")
        guard = FittedGuard(setting.name, artifact.tensors, artifact.meta.settings)
        stack = method.stacked([guard], self._device)
        try:
            require_supported(method.seam, stack, self._pipeline)
        except UnsupportedModel as error:
            raise ModelError(
                f"guard {setting.name} cannot act on {self._name!r}: {error}"
            ) from error
        artifact.require_model(self._fingerprint(method.bound_to), served=self._name)
        self._require_encoders(artifact, is_named=method.bound_to == "denoiser")
        try:
            require_fit(method.seam, stack, self._pipeline, self._text)
        except ValueError as error:
            raise ValueError(f"guard {setting.name}: {error}") from error
        return LoadedGuard.of(setting, artifact, method, guard), MethodGuard(method, guard)

    def _require_encoders(self, artifact: Artifact, *, is_named: bool) -> None:
        """Check the text encoders that an artifact names besides the part it is bound to.

        An artifact that is bound to the denoiser must name them: its guards read prompts too.

        Raises FingerprintError where they differ from the model's.
        """
        fitted = artifact.meta.settings.get("encoders")
        served = self._fingerprint("encoders") if is_named or fitted is not None else None
        if fitted != served:
            raise FingerprintError(
                f"guard for {artifact.meta.concept!r} was fitted on other text encoders ({fitted}) "
                f"than those of {self._name!r} ({served}): fit it on that model"
            )

    def _fingerprint(self, part: Part) -> str:
        if part not in self._fingerprints:
            if part not in _PARTS:
                raise ValueError(f"an image model has no {part} that a guard may be bound to")
            self._fingerprints[part] = fingerprint(_PARTS[part](self._pipeline))
        return self._fingerprints[part]


_PARTS: Mapping[Part, Callable[[GuardedPipeline], nn.Module]] = {
    "encoders": lambda pipeline: nn.ModuleDict(dict(pipeline.encoders)),
    "denoiser": lambda pipeline: pipeline.denoiser,
    "autoencoder": lambda pipeline: pipeline.autoencoder,
    "pipeline": lambda pipeline: nn.ModuleDict(dict(pipeline.networks)),
}
