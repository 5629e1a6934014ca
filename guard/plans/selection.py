"""From a configuration to the plans of one model: the guards that fit it, and every policy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

from guard.artifact import Artifact
from guard.config.kinds import Kind, kind_of
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.errors import ArtifactError, GuardError
from guard.plans.base import LoadedGuard, Plan
from steering.methods import SCREENS, method_named

logger = logging.getLogger(__name__)

T = TypeVar("T")
P = TypeVar("P", bound="Plan[Any]")


@dataclass(frozen=True)
class GuardSelection(Generic[T]):
    """The guards of a configuration for one model: those that fit, those that are broken with the
    reasons, those for models of another kind, and the screens of texts and images."""

    fit: Mapping[str, T]
    broken: Mapping[str, str]
    others: frozenset[str]
    texts: frozenset[str]


def select_guards(
    config: Config,
    kind: Kind,
    name: str,
    load: Callable[[GuardConfig, Artifact], T],
) -> GuardSelection[T]:
    """Load every guard for the served model `name`, of that kind.

    `load` turns an artifact into the form that the model's runtime stacks; it raises GuardError
    where the artifact was fitted on another model, and ValueError for an invalid artifact.
    """
    fit: dict[str, T] = {}
    broken: dict[str, str] = {}
    others, texts = set(), {patterns.name for patterns in config.patterns}
    for setting in config.guards:
        try:
            artifact = Artifact.load(setting.artifact)
            guard_kind = kind_of(artifact.meta)
            _require_kind(artifact, guard_kind)
            if guard_kind in SCREENS:
                texts.add(setting.name)
                continue
            if guard_kind not in {kind, None}:
                others.add(setting.name)
                continue
            fit[setting.name] = _loaded(setting, artifact, load)
        except GuardError as error:
            broken[setting.name] = error.message
            logger.warning("guard %s cannot be applied to %s: %s", setting.name, name, error)
    return GuardSelection(fit, broken, frozenset(others), frozenset(texts))


def _require_kind(artifact: Artifact, kind: Kind | None) -> None:
    """Raise ArtifactError where a guard's seams say that it is for other models than its method."""
    try:
        method = method_named(artifact.meta.method)
    except ValueError:
        return  # said where the guard is loaded
    if method.kind != kind:
        raise ArtifactError(
            f"the method {method.name!r} does not act at its seams "
            f"({', '.join(artifact.meta.seams)}): fit the guard again"
        )


def _loaded(
    setting: GuardConfig, artifact: Artifact, load: Callable[[GuardConfig, Artifact], T]
) -> T:
    try:
        return load(setting, artifact)
    except ValueError as error:
        raise ArtifactError(f"{setting.artifact}: {error}: fit the guard again") from error


def resolve(
    plan: type[P],
    name: str,
    policy: PolicyConfig,
    loaded: Mapping[str, LoadedGuard],
    selection: GuardSelection[T],
) -> P:
    """The policy `name` as a plan of that type; `loaded` are the guards that fit. Those of its
    shadow alone observe, where they fit."""
    texts = tuple(guard for guard in policy.guards if guard in selection.texts)
    observed = [loaded[guard] for guard in policy.only_observed if guard in loaded]
    wanted = [guard for guard in policy.guards if guard not in selection.others | selection.texts]
    return plan(
        policy=name,
        action=policy.action,
        on_error=policy.on_error,
        guards=(
            *(
                loaded[guard].under(policy.thresholds.get(guard))
                for guard in wanted
                if guard in loaded
            ),
            *(replace(guard, shadow=True) for guard in observed),
        ),
        broken={
            guard: selection.broken.get(guard, f"there is no guard {guard!r} in the configuration")
            for guard in wanted
            if guard not in loaded
        },
        unfit=bool(policy.guards) and not wanted and not texts,
        texts=texts,
        fallback=policy.fallback if policy.replacement else "block",
        replacement=policy.replacement,
        actions=policy.actions,
    )


class PolicyPlans(Generic[P]):
    """Every policy of a configuration as a plan for one model, made by `resolved`."""

    def __init__(
        self,
        config: Config,
        resolved: Callable[[str, PolicyConfig], P],
        selection: GuardSelection[Any],
    ) -> None:
        self._config, self._resolved = config, resolved
        self._known = frozenset(
            [*selection.fit, *selection.broken, *selection.others, *selection.texts]
        )
        self._plans = {name: resolved(name, config.policy(name)) for name in config.policy_names}

    def __getitem__(self, policy: str) -> P:
        """Raises KeyError for a policy that is not configured."""
        return self._plans[policy]

    def admitted(self, policy: str, config: Config | None) -> P:
        """The plan of a request that was admitted under `config`, which may be an earlier one than
        that of these plans; None is theirs. Raises UnknownPolicy."""
        if config is None:
            config = self._config
        if config is not self._config or policy not in self._plans:
            return self._under(policy, config)
        return self._plans[policy]

    def under(self, config: Config) -> Self:
        """The same guards, under the policies of another configuration."""
        plans = copy(self)
        plans._config = config
        plans._plans = {name: self._under(name, config) for name in config.policy_names}
        return plans

    def _under(self, name: str, config: Config) -> P:
        policy = config.policy(name)
        # what was erased on another model, or is erased no longer, is no guard of this one
        guards = tuple(guard for guard in policy.guards if guard in self._known)
        if guards != policy.guards:
            policy = policy.model_copy(update={"guards": guards})
        return self._resolved(name, policy)

    @property
    def usable(self) -> tuple[str, ...]:
        """The policies for this model whose guards can all be applied, or which fail open."""
        return tuple(name for name, plan in self._plans.items() if not (plan.refuses or plan.unfit))
