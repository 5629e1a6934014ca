"""Policies resolved against one loaded model: which guards act at which seams, and how they read.

Needs torch (through steering): imported where a model is, never by `import guard`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from guard.artifact import Artifact
from guard.config import Action, Config, GuardConfig, OnError, PolicyConfig
from guard.errors import ArtifactError, GuardError
from guard.verdict import GuardVerdict, Outcome, Verdict
from steering.engines.layers import decoder_layers
from steering.fingerprint import fingerprint
from steering.methods import load_guard
from steering.table import Bank, Reading, RowGuard, SteerGuard

logger = logging.getLogger(__name__)

_OUTCOME: dict[Action, Outcome] = {
    "steer": "steered",
    "block": "blocked",
    "flag": "flagged",
    "observe": "pass",
}


@dataclass(frozen=True)
class LoadedGuard:
    """A guard whose artifact fits the served model."""

    name: str
    concept: str
    method: str
    tensors: SteerGuard
    threshold: float
    strength: float
    recheck: float | None


@dataclass(frozen=True)
class Plan:
    """A policy for one model. `broken` says which of its guards cannot be applied, and why."""

    policy: str
    action: Action
    on_error: OnError
    guards: tuple[LoadedGuard, ...]
    broken: Mapping[str, str]

    @property
    def refuses(self) -> bool:
        """Whether requests are refused because a guard is broken and the policy fails closed."""
        return bool(self.broken) and self.on_error == "closed"

    def rows(self) -> tuple[RowGuard, ...]:
        """What the table needs to know of this plan for one row."""
        return tuple(
            RowGuard(
                name=guard.name,
                threshold=guard.threshold,
                strength=guard.strength,
                acts=self.action == "steer",
                recheck=guard.recheck,
            )
            for guard in self.guards
        )

    def verdict(
        self,
        readings: Mapping[str, Reading],
        *,
        request_id: str,
        model: str,
        elapsed_ms: float,
    ) -> Verdict:
        """What happened to a row, from what its guards have read."""
        guards = [self._applied(guard, readings.get(guard.name)) for guard in self.guards]
        guards += [
            GuardVerdict(name, "", "", None, 0.0, False, "none", error=reason)
            for name, reason in self.broken.items()
        ]
        failed = any(guard.error for guard in guards)
        fired = any(guard.fired for guard in guards)
        outcome: Outcome = _OUTCOME[self.action] if fired else "pass"
        return Verdict(
            request_id=request_id,
            model=model,
            policy=self.policy,
            outcome="error" if failed else outcome,
            guards=tuple(guards),
            elapsed_ms=round(elapsed_ms, 3),
        )

    def _applied(self, guard: LoadedGuard, reading: Reading | None) -> GuardVerdict:
        fired = reading is not None and reading.fired
        score = None if reading is None or not math.isfinite(reading.score) else reading.score
        invalid = reading is not None and not reading.valid
        return GuardVerdict(
            guard=guard.name,
            concept=guard.concept,
            method=guard.method,
            score=score,
            threshold=guard.threshold if reading is None else reading.threshold,
            fired=fired,
            action=self.action if fired else "none",
            position=reading.position if reading else None,
            error="the guard met NaN in the model's activations" if invalid else None,
        )


class Plans:
    """The guards that fit one model, stacked, and every policy resolved against them.

    A guard that does not fit stays out of the bank and breaks the policies that name it. Raises
    ArtifactError where guards that fit one by one cannot be stacked.
    """

    def __init__(self, config: Config, model: nn.Module, *, name: str) -> None:
        self.model = name
        loaded, broken = _load(config.guards, model, name)
        device = next(model.parameters()).device
        self.bank = _bank([guard.tensors for guard in loaded.values()], device)
        self._plans = {
            policy: _resolve(policy, config.policy(policy), loaded, broken)
            for policy in config.policy_names
        }

    def __getitem__(self, policy: str) -> Plan:
        """Raises KeyError for a policy that is not configured."""
        return self._plans[policy]

    @property
    def usable(self) -> tuple[str, ...]:
        """The policies whose guards can all be applied, or which fail open."""
        return tuple(name for name, plan in self._plans.items() if not plan.refuses)


def _load(
    settings: Sequence[GuardConfig], model: nn.Module, name: str
) -> tuple[dict[str, LoadedGuard], dict[str, str]]:
    served = fingerprint(model)
    loaded: dict[str, LoadedGuard] = {}
    broken: dict[str, str] = {}
    for setting in settings:
        try:
            artifact = Artifact.load(setting.artifact)
            artifact.require_model(served, served=name)
            loaded[setting.name] = _guard(setting, artifact, model)
        except GuardError as error:
            broken[setting.name] = error.message
            logger.warning("guard %s cannot be applied to %s: %s", setting.name, name, error)
    return loaded, broken


def _guard(setting: GuardConfig, artifact: Artifact, model: Any) -> LoadedGuard:
    meta = artifact.meta
    depth, width = len(decoder_layers(model)), model.config.hidden_size
    try:
        fitted = load_guard(meta.method, setting.name, artifact.tensors, meta.settings, depth)
        if fitted.tensors.width != width:
            raise ValueError(f"its width is {fitted.tensors.width}, the model's {width}")
    except ValueError as error:
        raise ArtifactError(f"{setting.artifact}: {error}: fit the guard again") from error
    recheck = fitted.recheck if setting.recheck in (None, True) else None
    if setting.recheck and recheck is None:
        raise ArtifactError(
            f"{setting.artifact}: was fitted without a threshold for generated tokens: "
            "leave out recheck, or fit it again with --recheck"
        )
    return LoadedGuard(
        name=setting.name,
        concept=meta.concept,
        method=meta.method,
        tensors=fitted.tensors,
        threshold=fitted.threshold if setting.threshold is None else setting.threshold,
        strength=fitted.strength if setting.strength is None else setting.strength,
        recheck=recheck,
    )


def _bank(guards: Sequence[SteerGuard], device: object) -> Bank:
    try:
        return Bank(guards, device=str(device))
    except ValueError as error:
        raise ArtifactError(str(error)) from error


def _resolve(
    name: str,
    policy: PolicyConfig,
    loaded: Mapping[str, LoadedGuard],
    broken: Mapping[str, str],
) -> Plan:
    return Plan(
        policy=name,
        action=policy.action,
        on_error=policy.on_error,
        guards=tuple(loaded[guard] for guard in policy.guards if guard in loaded),
        broken={
            guard: broken.get(guard, f"there is no guard {guard!r} in the configuration")
            for guard in policy.guards
            if guard not in loaded
        },
    )
