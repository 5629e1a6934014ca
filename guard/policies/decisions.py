"""What the policies of a configuration decide on scores that were recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from guard.artifact import Artifact
from guard.config.kinds import Kind
from guard.config.policy_schema import OF_METHODS, PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.errors import UnknownPolicy
from guard.plans.base import LoadedGuard, Plan
from guard.plans.screens import Screen, TextPlan, TextPlans
from guard.plans.selection import PolicyPlans, resolve, select_guards
from guard.policies.recorded import Recorded, is_of_answer
from guard.verdict import OUTCOMES, Done, GuardVerdict, Outcome, gravest
from steering.methods import method_named
from steering.methods.fitted import FittedGuard


@dataclass(frozen=True, slots=True)
class RecordedReading:
    """A score that was recorded, under a threshold of now. `took`: the action that followed, where
    its policy leaves it to the guard's method, as this one does."""

    score: float
    threshold: float
    valid: bool
    took: Done | None = None

    @property
    def fired(self) -> bool:
        return self.score > self.threshold


class RecordedPlan(Plan[RecordedReading]):
    """A policy for models of one kind, whichever they are."""

    def done(self, guard: LoadedGuard, reading: RecordedReading) -> Done:
        if reading.took is not None and self.action_of(guard) in OF_METHODS:
            return reading.took
        return super().done(guard, reading)

    def _guard_verdict(
        self, guard: LoadedGuard, reading: RecordedReading, done: Done
    ) -> GuardVerdict:
        return GuardVerdict(
            guard=guard.name,
            concept=guard.concept,
            method=guard.method.name,
            score=reading.score,
            threshold=reading.threshold,
            fired=reading.fired,
            action=done,
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """What is decided on a request. `missing` are guards whose scores were not recorded: what they
    would have done is not in the outcome."""

    outcome: Outcome
    guards: tuple[GuardVerdict, ...]
    missing: tuple[str, ...] = ()

    @property
    def acts(self) -> frozenset[tuple[str, str]]:
        """The guards that do something, and what."""
        return frozenset(
            (each.guard, each.action)
            for each in self.guards
            if each.fired and each.action not in {"none", "observe"}
        )


class Decisions:
    """Decides under the policies of `config`; `screens` are those of the server, under any.

    Reads the artifacts of the configuration, and no model.
    """

    def __init__(self, config: Config, screens: TextPlans | None) -> None:
        self.config = config
        self._screens = screens.under(config) if screens is not None else None
        self._plans = {kind: _plans(config, kind) for kind in ("language", "images")}
        names = [guard.name for guard in config.guards]
        self._known = frozenset([*names, *(patterns.name for patterns in config.patterns)])
        self._kinds: dict[str, Kind] = {}
        for model in config.models:
            self._kinds |= dict.fromkeys(
                [model.name, *(a.name for a in model.adapters)], model.kind
            )

    def under(self, config: Config) -> Decisions:
        """The same guards, under the policies of another configuration."""
        other = Decisions.__new__(Decisions)
        other.config, other._kinds, other._known = config, self._kinds, self._known
        other._screens = self._screens.under(config) if self._screens is not None else None
        other._plans = {kind: plans.under(config) for kind, plans in self._plans.items()}
        return other

    def screens_of(self, policy: str) -> TextPlan | None:
        """The screens of a policy; None where this server has none. Raises KeyError."""
        return self._screens[policy] if self._screens is not None else None

    def thresholds(self, policy: str) -> Mapping[str, float]:
        """The thresholds of a policy's guards. Raises UnknownPolicy."""
        plan = self.screens_of(policy)
        found = {screen.name: screen.threshold for screen in plan.all_screens} if plan else {}
        for plans in self._plans.values():
            guards = plans.admitted(policy, self.config).guards
            found |= {guard.name: guard.threshold for guard in guards}
        return found

    def decide(self, request: Recorded, policy: str, earlier: Decisions | None = None) -> Decision:
        """What `policy` decides on a request that was decided under `earlier`. Raises
        UnknownPolicy."""
        settings = self.config.policy(policy)
        guards: list[GuardVerdict] = []
        outcomes: list[Outcome] = []
        missing: list[str] = []
        plan = self.screens_of(policy)
        if plan is not None:
            for screen in plan.all_screens:
                verdict = _of_screen(screen, request, missing)
                guards.append(verdict)
                outcomes += _outcomes(verdict)
            if plan.broken and plan.on_error == "closed":
                outcomes.append("error")
        if (plans := self._plans.get(self._kinds.get(request.model, ""))) is not None:
            model_plan = plans.admitted(policy, self.config)
            before = earlier.guards_of(request) if earlier is not None else {}
            readings = {}
            for guard in model_plan.guards:
                known = request.guards.get(guard.name)
                if known is None:
                    missing.append(guard.name)
                elif (score := known.get("score")) is not None:
                    reading = _reading(guard, known, score, before.get(guard.name))
                    if reading is None:
                        missing.append(guard.name)
                    else:
                        readings[guard.name] = reading
            verdict_of_model = model_plan.verdict(
                readings, request_id="", model=request.model, elapsed_ms=0.0
            )
            guards += verdict_of_model.guards
            outcomes.append(verdict_of_model.outcome)
        for verdict in self._of_others(request):
            guards.append(verdict)
            outcomes += _outcomes(verdict)
        # guards that only observe for a shadow decide nothing
        missing = [name for name in missing if name in settings.guards]
        return Decision(gravest(outcomes), tuple(guards), tuple(missing))

    def _of_others(self, request: Recorded) -> Iterator[GuardVerdict]:
        """What guards of an upstream have done, which do that under any policy of this server."""
        for name, known in request.guards.items():
            if name not in self._known and known.get("fired"):
                yield GuardVerdict(
                    guard=name,
                    concept=str(known.get("concept")),
                    method=str(known.get("method")),
                    score=known.get("score"),
                    threshold=known.get("threshold") or 0.0,
                    fired=True,
                    action=str(known.get("action")),
                )

    def guards_of(self, request: Recorded) -> Mapping[str, tuple[LoadedGuard, bool]]:
        """The guards of models in a request's policy, each with whether it acts by its method."""
        plans = self._plans.get(self._kinds.get(request.model, ""))
        if plans is None:
            return {}
        try:
            plan = plans.admitted(request.policy, self.config)
        except UnknownPolicy:
            return {}
        return {g.name: (g, plan.action_of(g) in OF_METHODS) for g in plan.guards}


_OUTCOMES: Mapping[str, Outcome] = {str(done): outcome for done, outcome in OUTCOMES.items()}


def _outcomes(verdict: GuardVerdict) -> list[Outcome]:
    """What follows from one guard, if anything."""
    return [_OUTCOMES[verdict.action]] if verdict.fired and verdict.action in _OUTCOMES else []


def _of_screen(screen: Screen, request: Recorded, missing: list[str]) -> GuardVerdict:
    known = request.guards.get(screen.name)
    score = known.get("score") if known is not None else None
    fired, action = False, "none"
    if known is None:
        missing.append(screen.name)
    elif score is not None and screen.fires(score):
        fired, action = True, screen.done(in_response=is_of_answer(known.get("place")))
    return GuardVerdict(
        screen.name, screen.concept, screen.method, score, screen.threshold, fired, action
    )


def _reading(
    guard: LoadedGuard,
    known: Mapping[str, Any],
    score: float,
    before: tuple[LoadedGuard, bool] | None,
) -> RecordedReading | None:
    """The score under the threshold of now; None where it is not known under which."""
    thresholds, took = {guard.threshold}, None
    if guard.recheck is not None:
        # generated tokens have a threshold of their own; which one the highest score had, the one
        # that was recorded tells, where it is one of those of then alone
        thresholds = {guard.threshold, guard.recheck}
    if before is not None:
        earlier, by_method = before
        if guard.recheck is not None and earlier.threshold != earlier.recheck:
            if known.get("threshold") == earlier.threshold:
                thresholds = {guard.threshold}
            elif known.get("threshold") == earlier.recheck:
                thresholds = {guard.recheck}
        took = known.get("action") if by_method and known.get("fired") else None
    if len({score > threshold for threshold in thresholds}) > 1:
        return None
    return RecordedReading(score, max(thresholds), known.get("error") is None, took)


def _plans(config: Config, kind: Kind) -> PolicyPlans[RecordedPlan]:
    def load(setting: GuardConfig, artifact: Artifact) -> LoadedGuard:
        method = method_named(artifact.meta.method)
        fitted = FittedGuard(setting.name, {}, artifact.meta.settings)
        loaded = LoadedGuard.of(setting, artifact, method, fitted)
        if kind == "language":
            loaded = loaded.rechecked(setting, fitted.optional_number("recheck"))
        return loaded

    selection = select_guards(config, kind, "recorded requests", load)

    def resolved(policy: str, settings: PolicyConfig) -> RecordedPlan:
        return resolve(RecordedPlan, policy, settings, selection.fit, selection)

    return PolicyPlans(config, resolved, selection)
