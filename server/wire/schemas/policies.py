"""Request bodies of `/guard/v1/policies/NAME`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from guard.policies.recorded import MOST
from guard.policies.versions import MAX_WHY
from server.wire.schemas.base import Part

_Why = Annotated[str, Field(max_length=MAX_WHY)]
_Number = Annotated[int, Field(ge=0, le=2**31 - 1)]


class PolicyDraft(Part):
    """`settings` are the table `[policies.NAME]` of the configuration, as JSON."""

    settings: dict[str, Any]


class ShadowBody(PolicyDraft):
    """`why` is kept with the version."""

    why: _Why = ""


class PolicyBody(ShadowBody):
    """`version` is the number of the version that must be in force, 0 for none."""

    version: _Number | None = None


class RollbackBody(Part):
    """`to` is the number of a version of the policy."""

    to: Annotated[int, Field(ge=1, le=2**31 - 1)]
    why: _Why = ""
    version: _Number | None = None


class PromotionBody(Part):
    why: _Why = ""


class ReplayBody(Part):
    """One of `settings`, `version` (a number) and `shadow`. The `last` requests under the policy
    are decided again, or under `every_policy`; `show` of those that change are told in full."""

    settings: dict[str, Any] | None = None
    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    shadow: bool = False
    last: Annotated[int, Field(ge=1, le=MOST)] = 1000
    show: Annotated[int, Field(ge=0, le=1000)] = 100
    every_policy: bool = False

    @model_validator(mode="after")
    def _has_one(self) -> ReplayBody:
        if (self.settings is not None) + (self.version is not None) + self.shadow != 1:
            raise PydanticCustomError("one", "give one of settings, version and shadow")
        return self
