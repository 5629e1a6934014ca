"""The plans of every kind of model: guards that fit it, and a policy resolved to a plan."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from guard.artifact import Artifact
from guard.config.policy_schema import OF_METHODS, Action, Fallback, OnError
from guard.config.schema import GuardConfig
from guard.config.setting_checks import recheck_of
from guard.errors import GuardFailed, PolicyUnfit
from guard.verdict import OUTCOMES, Done, GuardVerdict, Verdict, gravest
from steering.methods import Action as MethodAction
from steering.methods import Method

if TYPE_CHECKING:
    from steering.hidden.rows import RowGuard


@dataclass(frozen=True)
class LoadedGuard:
    """A guard whose artifact fits the served model.

    `method` is the entry of the table of methods; `digest` that of the artifact. A guard whose
    action is to block changes nothing itself: where it fires, the policy's fallback decides. One
    in `shadow` observes, whatever its policy's action is. `entries` are the ids of the names of a
    suppression list.
    """

    name: str
    concept: str
    method: Method
    threshold: float
    strength: float
    recheck: float | None = None
    digest: str = ""
    entries: tuple[str, ...] = ()
    shadow: bool = False
    fitted_recheck: float | None = None
    """The `recheck` of the fit, which a threshold raises; None where the configuration gives it."""

    def under(self, threshold: float | None) -> LoadedGuard:
        """The guard with the threshold of a policy; None: with its own."""
        if threshold is None:
            return self
        recheck = self.recheck
        if self.fitted_recheck is not None:
            recheck = max(self.fitted_recheck, threshold)
        return replace(self, threshold=threshold, recheck=recheck)

    def rechecked(self, setting: GuardConfig, fitted: float | None) -> LoadedGuard:
        """The guard with a threshold for generated tokens, as the configuration says, or the fit.

        Raises ArtifactError where the configuration asks for one and there is none.
        """
        recheck = recheck_of(setting.recheck, fitted, setting.threshold)
        is_fitted = recheck is not None and isinstance(setting.recheck, bool | None)
        return replace(self, recheck=recheck, fitted_recheck=fitted if is_fitted else None)

    @property
    def action(self) -> MethodAction:
        """The action of the guard's method."""
        return self.method.action

    @classmethod
    def of(
        cls,
        setting: GuardConfig,
        artifact: Artifact,
        method: Method,
        fitted: FittedSettings,
    ) -> LoadedGuard:
        """With the threshold and the strength of the configuration, or those of the fit.

        Raises ValueError where the artifact lacks one of them, or one is out of range.
        """
        chosen = {"threshold": setting.threshold, "strength": setting.strength}
        method.require_in_range(chosen, setting.name)
        threshold, strength = setting.threshold, setting.strength
        if method.action == "block":
            strength = 1.0
        return cls(
            name=setting.name,
            concept=artifact.meta.concept,
            method=method,
            threshold=fitted.number("threshold") if threshold is None else threshold,
            strength=fitted.number("strength") if strength is None else strength,
            digest=artifact.digest,
            shadow=setting.shadow,
        )


class FittedSettings(Protocol):
    """The settings of a fitted guard."""

    def number(self, key: str) -> float:
        """A finite number. Raises ValueError."""


class AnyReading(Protocol):
    """The fields that the readings of all seams share."""

    @property
    def score(self) -> float: ...

    @property
    def threshold(self) -> float: ...

    @property
    def fired(self) -> bool: ...

    @property
    def valid(self) -> bool: ...


R = TypeVar("R", bound=AnyReading)


@dataclass(frozen=True)
class Plan(ABC, Generic[R]):
    """A policy for one model. `broken` has its guards that cannot be applied, and the reasons.

    `unfit` is True where the policy has guards, but none for this kind of model. `texts` are its
    screens of texts and images, which the server or the proxy runs, not the model's runtime.
    `actions` are those of single guards, in place of `action`.
    """

    policy: str
    action: Action
    on_error: OnError
    guards: tuple[LoadedGuard, ...]
    broken: Mapping[str, str]
    unfit: bool = False
    fallback: Fallback = "block"
    replacement: str | None = None
    texts: tuple[str, ...] = ()
    actions: Mapping[str, Action] = field(default_factory=dict)

    @property
    def refuses(self) -> bool:
        """Whether requests are refused because a guard is broken and the policy fails closed."""
        return bool(self.broken) and self.on_error == "closed"

    @property
    def acts(self) -> bool:
        """Whether a guard that fires takes the action of its method, unless it has one of its
        own."""
        return self.action in OF_METHODS

    def require_whole(self) -> None:
        """Raise GuardFailed where a guard is broken and this policy fails closed."""
        if self.refuses:
            faults = "; ".join(f"{guard}: {why}" for guard, why in self.broken.items())
            raise GuardFailed(f"policy {self.policy!r} cannot be applied: {faults}")

    def require_no_texts(self) -> None:
        """Raise GuardFailed where this policy has screens, which only a server runs."""
        if self.texts:
            raise GuardFailed(
                f"policy {self.policy!r} has screens ({', '.join(self.texts)}), which only "
                "`guard serve` and `guard proxy` run: ask for another policy"
            )

    def require_fit(self, model: str) -> None:
        """Raise PolicyUnfit where this policy would leave every request to `model` unguarded."""
        if self.unfit:
            raise PolicyUnfit(
                f"no guard of the policy {self.policy!r} is for a model like {model!r}: ask for "
                "another policy, or have the operator set the model's default_policy",
                param="guard.policy",
            )

    def failed(self, reason: str) -> Self:
        """The plan where, for this reason, none of its guards has acted."""
        broken = dict.fromkeys((guard.name for guard in self.guards), reason)
        return replace(self, guards=(), broken=broken | dict(self.broken))

    def rows(self) -> tuple[RowGuard, ...]:
        """The guards of a row under this plan."""
        # needs torch, which a proxy has not
        from steering.hidden.rows import RowGuard

        return tuple(
            RowGuard(
                name=guard.name,
                threshold=guard.threshold,
                strength=guard.strength,
                acts=self.action_of(guard) in OF_METHODS,
                recheck=guard.recheck,
            )
            for guard in self.guards
        )

    def verdict(
        self,
        readings: Mapping[str, R],
        *,
        request_id: str,
        model: str,
        elapsed_ms: float,
    ) -> Verdict:
        """The verdict on a row, from the readings of its guards."""
        guards, outcomes = [], []
        for guard in self.guards:
            reading = readings.get(guard.name)
            if reading is None:
                guards.append(_unread(guard))
                continue
            done = self.done(guard, reading) if reading.fired else "none"
            outcomes.append(OUTCOMES[done])
            guards.append(self._guard_verdict(guard, reading, done))
        guards += [
            GuardVerdict(name, "", "", None, 0.0, False, "none", error=reason)
            for name, reason in self.broken.items()
        ]
        failed = any(guard.error for guard in guards)
        return Verdict(
            request_id=request_id,
            model=model,
            policy=self.policy,
            outcome="error" if failed else gravest(outcomes),
            guards=tuple(guards),
            elapsed_ms=round(elapsed_ms, 3),
        )

    def action_of(self, guard: LoadedGuard) -> Action:
        """The guard's action under this policy."""
        return "observe" if guard.shadow else self.actions.get(guard.name, self.action)

    def done(self, guard: LoadedGuard, reading: R) -> Done:
        """The action taken for a reading that has fired."""
        action = self.action_of(guard)
        return guard.action if action in OF_METHODS else action

    def blocks(self, readings: Mapping[str, R]) -> bool:
        """Whether a guard has fired whose action is to block."""
        return self.has_fired(readings, "block")

    def has_fired(self, readings: Mapping[str, R], action: Action) -> bool:
        """Whether a guard with this action has fired."""
        return any(
            reading.fired
            for guard in self.guards
            if self.action_of(guard) == action and (reading := readings.get(guard.name)) is not None
        )

    @abstractmethod
    def _guard_verdict(self, guard: LoadedGuard, reading: R, done: Done) -> GuardVerdict:
        """The entry of the verdict for one reading."""


def _unread(guard: LoadedGuard) -> GuardVerdict:
    return GuardVerdict(
        guard.name, guard.concept, guard.method.name, None, guard.threshold, False, "none"
    )


def finite(score: float) -> float | None:
    """The score, or None where JSON has no number for it."""
    return score if math.isfinite(score) else None
