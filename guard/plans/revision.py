"""One reading of a configuration for a model that several processes serve together.

A front end decides which policy a request has, and workers what its guards do: both read the same
configuration, and speak of a policy by the key that both make of it. When the configuration is
read anew, a new generation follows, and the keys of the last one stay those of its requests.
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

    `key` names it in this generation of the `model` alone. `salt` goes into the hash of what is
    cached of its requests, None where that of bare requests serves as well. `rows` are its guards
    by the names that they have in `Revision.guards`.
    """

    key: str
    salt: str | None
    model: str
    plan: LanguagePlan
    rows: tuple[RowGuard, ...]


class Revision:
    """What each policy of a configuration is for one model, and the guards that they carry.

    `guards` are by name and artifact, so that those of two generations never mix. Raises
    ArtifactError for guards that cannot be stacked.
    """

    def __init__(self, config: Config, served: ServedModel, name: str, number: int = 0) -> None:
        plans = LanguagePlans(config, served, name=name)
        fitted = [plans[policy] for policy in config.policy_names]
        self.served, self.model, self.number = served, name, number
        self.guards: Mapping[str, MethodGuard] = {
            _unique(guard): plans.guards[guard.name].named(_unique(guard))
            for plan in fitted
            for guard in plan.guards
        }
        self.entries: Mapping[str, RevisionEntry] = {
            plan.policy: self._entry(plan) for plan in fitted if not plan.unfit
        }

    def _entry(self, plan: LanguagePlan) -> RevisionEntry:
        rows = zip(plan.rows(), map(_unique, plan.guards), strict=True)
        guards = [[_unique(own), own.threshold, own.strength, own.recheck] for own in plan.guards]
        about = [self.model, self.served.fingerprint, self.number, plan.policy, plan.on_error]
        return RevisionEntry(
            key=digest([*about, plan.action, sorted(plan.broken), guards]),
            salt=_salt(plan, guards),
            model=self.model,
            plan=plan,
            rows=tuple(replace(row, name=unique) for row, unique in rows),
        )


def _salt(plan: LanguagePlan, guards: Sequence[object]) -> str | None:
    if not plan.guards:
        return None
    if plan.acts:
        return digest(["steered", guards])
    # states are as nobody's, but of tokens that were not watched there are no gates
    return digest(["watched", [_unique(guard) for guard in plan.guards]])


def _unique(guard: LoadedGuard) -> str:
    return f"{guard.name}@{guard.digest}"


def digest(parts: Sequence[object]) -> str:
    """SHA-256 of what JSON makes of them."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
