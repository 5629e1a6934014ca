"""A version of a policy: its settings, and who has changed them, when and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config
from guard.tenants.covering import covers

Act = Literal["put", "delete", "rollback", "shadow", "promote", "file"]
"""How a version came about; "file": somebody has edited the configuration."""
Settings = Mapping[str, Any]
"""The table `[policies.NAME]`, without what has its default."""
MAX_WHY = 500
"""Characters of a reason."""
_BEFORE, _AFTER = "before", "after"


@dataclass(frozen=True, slots=True)
class Change:
    """A change to be made; `settings` None removes the policy."""

    policy: str
    act: Act
    settings: Settings | None
    by: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """A change that was made: number `number` of its policy, and `revision` of all changes;
    `time` is in seconds since the epoch."""

    change: Change
    number: int
    revision: int
    time: float

    @property
    def settings(self) -> Settings | None:
        """None: there was no such policy any more."""
        return self.change.settings

    def as_dict(self, *, current: bool) -> dict[str, Any]:
        """The JSON-ready form."""
        time = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds")
        return {
            "object": "policy.version",
            "policy": self.change.policy,
            "version": self.number,
            "act": self.change.act,
            "by": self.change.by,
            "why": self.change.why,
            "time": time.replace("+00:00", "Z"),
            "settings": self.settings,
            "current": current,
        }


def settings_of(policy: PolicyConfig) -> dict[str, Any]:
    """The settings of a policy, each in its one spelling."""
    return policy.model_dump(mode="json", exclude_defaults=True)


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two versions of a policy, by the place of each setting."""

    changes: Sequence[Mapping[str, Any]]
    weaker: bool | None
    """Whether the second does not do all that the first does; None where one of them is missing, or
    unknown to this release."""


def difference(before: Settings | None, after: Settings | None, config: Config) -> Difference:
    """What differs between two versions of a policy of `config`."""
    old, new = (dict(_flat(settings or {})) for settings in (before, after))
    changes = [
        {"field": field, "before": old.get(field), "after": new.get(field)}
        for field in sorted({*old, *new})
        if old.get(field) != new.get(field)
    ]
    weaker = None
    if before is not None and after is not None:
        policies = {_BEFORE: before, _AFTER: after}
        # another release may have kept what this one does not know
        with suppress(ValidationError):
            parsed = {name: PolicyConfig.model_validate(each) for name, each in policies.items()}
            weaker = not covers(config.model_copy(update={"policies": parsed}), _AFTER, _BEFORE)
    return Difference(changes, weaker)


def _flat(settings: Settings, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
