"""The three levels of tenants, and what is stored of each: organisations, teams, keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from guard.config.policy_schema import Names
from guard.config.section import Name, Section
from guard.verdict import VerdictDetail

TENANT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""Names of organisations, teams and keys: without a slash, which stands between two of them."""
LONGEST_LIFE_S = 10 * 366 * 86_400
"""Of a key that expires."""
LONGEST_OVERLAP_S = 30 * 86_400
"""How long the secret before a rotation may be taken too."""
Role = Literal["tenant", "auditor", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
Kind = Literal["organisation", "team", "key"]
_Limit = Annotated[int | None, Field(ge=1, le=10**15)]


class LevelSettings(Section):
    """What an organisation, a team or a key says; None leaves it to the level above.

    `policies` may be asked for beside `default_policy`: a level below can only leave some of them
    out. Whatever policy a request has, it must do at least what each of the `required` ones does,
    of all levels. Limits of all levels hold together. `embeddings` is allowed where a level says
    so and none forbids it; `verdict` is the least that any level says.
    """

    default_policy: Name | None = None
    policies: Names | None = None
    required: Names = ()
    embeddings: bool | None = None
    verdict: VerdictDetail | None = None
    requests_per_minute: _Limit = None
    tokens_per_minute: _Limit = None
    concurrent_requests: _Limit = None
    tokens_per_month: _Limit = None

    def changed(self, changes: dict[str, Any]) -> LevelSettings:
        """These settings with others in place of some; None takes one back."""
        fields = self.model_dump(exclude_none=True) | changes
        return LevelSettings.model_validate({k: v for k, v in fields.items() if v is not None})


@dataclass(frozen=True, slots=True)
class Organisation:
    """Times are seconds since the epoch."""

    name: str
    settings: LevelSettings
    created: float
    revoked: float | None = None

    @property
    def id(self) -> str:
        return self.name

    @property
    def parent(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Team:
    """`id` is "ORGANISATION/TEAM"."""

    organisation: str
    name: str
    settings: LevelSettings
    created: float
    revoked: float | None = None

    @property
    def id(self) -> str:
        return f"{self.organisation}/{self.name}"

    @property
    def parent(self) -> str:
        return self.organisation


@dataclass(frozen=True, slots=True)
class Key:
    """An API key; the key itself is stored nowhere. `team` is its team's id, None for a role that
    asks no models. Until `previous_until` the secret before the last rotation is taken too.
    """

    id: str
    team: str | None
    name: str
    role: Role
    hash: str
    settings: LevelSettings
    created: float
    revoked: float | None = None
    expires: float | None = None
    previous_hash: str | None = None
    previous_until: float | None = None

    @property
    def parent(self) -> str | None:
        return self.team


Level = Organisation | Team | Key


def kind_of(level: Level) -> Kind:
    """What a level is called."""
    if isinstance(level, Organisation):
        return "organisation"
    return "team" if isinstance(level, Team) else "key"


def usage_id(kind: Kind, identity: str) -> str:
    """The name of a level's counters, unlike those of all other levels."""
    return f"{kind} {identity}"
