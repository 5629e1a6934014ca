"""Services whose policies change while they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

from guard.config.schema import Config
from guard.errors import GuardError
from guard.plans.selection import PolicyPlans
from server.services.interface import ModelInfo

P = TypeVar("P", bound=PolicyPlans[Any])
Info = TypeVar("Info", bound=ModelInfo)


class FollowsPolicies(Generic[P, Info]):
    """A service with plans, whose `info` says which of them its model can have."""

    _plans: P
    info: Info

    def follow(self, config: Config) -> Callable[[], None]:
        """See `server.policies.live.Follower`."""
        plans = self._plans.under(config)

        def swap() -> None:
            self._plans = plans
            self.info = replace(self.info, policies=plans.usable)

        return swap

    def fault(self, config: Config, policy: str) -> str | None:
        """Why this model could take no request under a policy of `config`; None where it could."""
        plan = self._plans.admitted(policy, config)
        try:
            plan.require_fit(self.info.name)
            plan.require_whole()
        except GuardError as error:
            return error.message
        return None
