"""`/guard/v1/organisations`, `/guard/v1/teams` and `/guard/v1/keys`."""

from __future__ import annotations

from typing import Generic, Literal, NotRequired, TypeVar

from typing_extensions import TypedDict

from guard.tenants.levels import Role
from guard.verdict import VerdictDetail

T = TypeVar("T")


class MonthUsage(TypedDict):
    """What a level has used in a month; the last second may be missing."""

    period: str
    requests: int
    tokens: int


class LevelFacts(TypedDict):
    """Times are in RFC 3339."""

    id: str
    name: str
    created: str
    revoked: str | None
    default_policy: str | None
    policies: list[str] | None
    required: list[str]
    embeddings: bool | None
    verdict: VerdictDetail | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    tokens_per_month: int | None
    usage: MonthUsage


class OrganisationFacts(LevelFacts):
    object: Literal["organisation"]


class TeamFacts(LevelFacts):
    object: Literal["team"]
    organisation: str


class KeyFacts(LevelFacts):
    """`key` is told once, where it is made. Until `previous_until` the key before is taken too."""

    object: Literal["key"]
    team: str | None
    role: Role
    expires: str | None
    previous_until: str | None
    key: NotRequired[str]


class LevelPage(TypedDict, Generic[T]):
    object: Literal["list"]
    data: list[T]
    has_more: bool
    last_id: str | None
