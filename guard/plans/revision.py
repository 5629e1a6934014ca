"""A revision of the configuration, for a model that several processes serve together.

The front end chooses the policy of a request, and workers run its guards. Both read the same
configuration and refer to a policy by a key, which both compute. A reload makes a new revision with
other keys; running requests keep the keys of theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from guard.config.schema import Config
from guard.plans.base import LoadedGuard
from guard.plans.language import LanguagePlan, LanguagePlans, ServedModel
from steering.hidden.rows import RowGuard
from steering.methods.stacking import MethodGuard


@dataclass(frozen=True)
class RevisionEntry:
    """A policy for the served model.

    `key` identifies the policy in this revision and for this `model`. `salt` is hashed into the
    prefix cache of its requests; None where they can share the cache of unguarded requests. `rows`
    are its guards, by their names in `Revision.guards`.
    """

    key: str
    salt: str | None
    model: str
    plan: LanguagePlan
    rows: tuple[RowGuard, ...]
    shadows: frozenset[str]
    """Those of them that only observe."""


class Revision:
    """All policies of a configuration for one model, and their guards.

    Names in `guards` contain the artifact's digest, so that guards of two revisions never mix.
    Raises ArtifactError for guards that cannot be stacked.
    """

    def __init__(self, config: Config, served: ServedModel, name: str, number: int = 0) -> None:
        plans = LanguagePlans(config, served, name=name)
        all_plans = [plans[policy].outside("vLLM") for policy in config.policy_names]
        self.served, self.model, self.number = served, name, number
        self.guards: Mapping[str, MethodGuard] = {
            _unique(guard): plans.guards[guard.name].named(_unique(guard))
            for plan in all_plans
            for guard in plan.guards
        }
        self.entries: Mapping[str, RevisionEntry] = {
            plan.policy: self._entry(plan) for plan in all_plans if not plan.unfit
        }

    def _entry(self, plan: LanguagePlan) -> RevisionEntry:
        rows = zip(plan.rows(), map(_unique, plan.guards), strict=True)
        guards = [[_unique(g), g.threshold, g.strength, g.recheck, g.shadow] for g in plan.guards]
        identity = [self.model, self.served.fingerprint, self.number, plan.policy, plan.on_error]
        return RevisionEntry(
            key=digest([*identity, plan.action, sorted(plan.broken), guards]),
            salt=_salt(plan, guards),
            model=self.model,
            plan=plan,
            rows=tuple(replace(row, name=unique) for row, unique in rows),
            shadows=frozenset(_unique(guard) for guard in plan.guards if guard.shadow),
        )


def _salt(plan: LanguagePlan, guards: Sequence[object]) -> str | None:
    if not plan.guards:
        return None
    if plan.acts:
        return digest(["steered", guards])
    # the states equal those of unguarded requests, but cached tokens without gates have no scores
    return digest(["watched", [_unique(guard) for guard in plan.guards]])


def _unique(guard: LoadedGuard) -> str:
    return f"{guard.name}@{guard.digest}"


def digest(parts: Sequence[object]) -> str:
    """SHA-256 of the parts' JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
