"""Request bodies of `/guard/v1/organisations`, `/guard/v1/teams` and `/guard/v1/keys`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from guard.config.policy_schema import Names
from guard.config.section import Name
from guard.tenants.levels import LONGEST_LIFE_S, LONGEST_OVERLAP_S, Role
from guard.verdict import VerdictDetail
from server.wire.schemas.base import Part

_Limit = Annotated[int | None, Field(ge=1, le=10**15)]


class LevelBody(Part):
    """The settings that every level may have; null leaves one to the level above."""

    default_policy: Name | None = None
    policies: Annotated[Names | None, Field(max_length=1000)] = None
    required: Annotated[Names | None, Field(max_length=100)] = None
    embeddings: bool | None = None
    verdict: VerdictDetail | None = None
    requests_per_minute: _Limit = None
    tokens_per_minute: _Limit = None
    concurrent_requests: _Limit = None
    tokens_per_month: _Limit = None

    def settings(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Those of the settings that the body `raw` has, null too."""
        return {name: getattr(self, name) for name in LevelBody.model_fields if name in raw}


class OrganisationBody(LevelBody):
    name: str


class TeamBody(LevelBody):
    organisation: str
    name: str


class KeyBody(LevelBody):
    """`team` is "ORGANISATION/TEAM"; a key of another role than "tenant" has none. `expires_in` is
    in seconds."""

    name: str
    team: str | None = None
    role: Role = "tenant"
    expires_in: Annotated[int | None, Field(ge=1, le=LONGEST_LIFE_S)] = None


class RotationBody(Part):
    """The old key is taken for `overlap` seconds more."""

    overlap: Annotated[int, Field(ge=0, le=LONGEST_OVERLAP_S)] = 0
