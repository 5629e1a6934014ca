"""Policies resolved against one language model: which guards act at its layers, how they read.

Needs torch (through steering): imported where a model is, never by `import guard`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from guard.artifact import Artifact
from guard.config.schema import Config, GuardConfig
from guard.errors import ArtifactError
from guard.plans.base import LoadedGuard, Plan, PolicyPlans, find_guards, finite, resolve
from guard.verdict import Done, GuardVerdict
from steering.engines.transformers.layers import decoder_layers
from steering.fingerprint import fingerprint
from steering.hidden.bank import Bank, SteerGuard
from steering.hidden.rows import Reading
from steering.methods import load_guard


@dataclass(frozen=True)
class LanguagePlan(Plan[Reading]):
    """A policy for one language model."""

    def _told(self, guard: LoadedGuard, reading: Reading, done: Done) -> GuardVerdict:
        return GuardVerdict(
            guard=guard.name,
            concept=guard.concept,
            method=guard.method,
            score=finite(reading.score),
            threshold=reading.threshold,
            fired=reading.fired,
            action=done,
            position=reading.position,
            error=None if reading.valid else "the guard met NaN in the model's activations",
        )


@dataclass(frozen=True)
class ServedModel:
    """What guards must know of a language model, whatever runs it."""

    fingerprint: str
    depth: int
    width: int
    device: str

    @classmethod
    def of(cls, model: Any) -> ServedModel:
        """A transformers model. Raises UnknownArchitecture."""
        return cls(
            fingerprint=fingerprint(model),
            depth=len(decoder_layers(model)),
            width=model.config.hidden_size,
            device=str(next(model.parameters()).device),
        )


class LanguagePlans(PolicyPlans[LanguagePlan]):
    """The guards that fit one model, stacked, and every policy resolved against them.

    A guard that does not fit stays out of the bank and breaks the policies that name it. Raises
    ArtifactError where guards that fit one by one cannot be stacked.
    """

    def __init__(self, config: Config, model: nn.Module | ServedModel, *, name: str) -> None:
        self.model = name
        served = model if isinstance(model, ServedModel) else ServedModel.of(model)

        def load(setting: GuardConfig, artifact: Artifact) -> tuple[LoadedGuard, SteerGuard]:
            artifact.require_model(served.fingerprint, served=name)
            return _guard(setting, artifact, served)

        found = find_guards(config, "language", name, load)
        self.guards = {guard: tensors for guard, (_, tensors) in found.fit.items()}
        self.bank = _bank([*self.guards.values()], served.device)
        loaded = {guard: fitted for guard, (fitted, _) in found.fit.items()}
        super().__init__(
            {
                policy: resolve(LanguagePlan, policy, config.policy(policy), loaded, found)
                for policy in config.policy_names
            }
        )


def _guard(
    setting: GuardConfig, artifact: Artifact, model: ServedModel
) -> tuple[LoadedGuard, SteerGuard]:
    meta = artifact.meta
    fitted = load_guard(meta.method, setting.name, artifact.tensors, meta.settings, model.depth)
    if fitted.tensors.width != model.width:
        raise ValueError(f"its width is {fitted.tensors.width}, the model's {model.width}")
    recheck = fitted.recheck if setting.recheck in (None, True) else None
    if setting.recheck and recheck is None:
        raise ArtifactError(
            f"{setting.artifact}: was fitted without a threshold for generated tokens: "
            "leave out recheck, or fit it again with --recheck"
        )
    loaded = LoadedGuard(
        name=setting.name,
        concept=meta.concept,
        method=meta.method,
        action="steer",
        threshold=fitted.threshold if setting.threshold is None else setting.threshold,
        strength=fitted.strength if setting.strength is None else setting.strength,
        recheck=recheck,
        digest=artifact.digest,
    )
    return loaded, fitted.tensors


def _bank(guards: Sequence[SteerGuard], device: str) -> Bank:
    try:
        return Bank(guards, device=device)
    except ValueError as error:
        raise ArtifactError(str(error)) from error
