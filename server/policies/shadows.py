"""What the shadows of policies say of live requests, from the scores of their guards."""

from __future__ import annotations

import logging
from collections.abc import Callable

from guard.config.schema import Config
from guard.plans.screens import TextPlans
from guard.policies.decisions import Decisions
from guard.policies.recorded import Recorded
from guard.verdict import Shadow, Verdict

logger = logging.getLogger(__name__)


class Shadows:
    """The shadows of the policies of `config`; `screens` are those of the server."""

    def __init__(self, config: Config, screens: TextPlans | None) -> None:
        self._screens = screens
        self._decisions: tuple[Decisions, Decisions] | None = None
        """Those of the shadows, and those in force."""
        self.follow(config)()

    def follow(self, config: Config) -> Callable[[], None]:
        """See `server.policies.live.Follower`."""
        shadows = {
            name: policy.shadow
            for name, policy in config.policies.items()
            if policy.shadow is not None
        }
        decisions = None
        if shadows:
            policies = config.model_copy(update={"policies": shadows})
            known = self._decisions[0] if self._decisions is not None else None
            if known is None or known.config.guards != config.guards:
                known = Decisions(policies, self._screens)
            decisions = known.under(policies), known.under(config)

        def swap() -> None:
            self._decisions = decisions

        return swap

    def __call__(self, verdict: Verdict) -> Shadow | None:
        """What the shadow of its policy says of a verdict; None where it has none. From any
        thread."""
        decisions = self._decisions
        if decisions is None or verdict.policy not in decisions[0].config.policies:
            return None
        shadows, in_force = decisions
        try:
            decided = shadows.decide(_recorded(verdict), verdict.policy, in_force)
        except Exception:  # what only observes must not fail a request
            logger.exception("the shadow of %s could not decide", verdict.policy)
            return {"outcome": "unknown", "guards": {}}
        # an answer that was refused was not read
        is_unknown = bool(decided.missing) and decided.outcome != "blocked"
        return {
            "outcome": "unknown" if is_unknown else decided.outcome,
            "guards": dict(sorted(decided.acts)),
        }


def _recorded(verdict: Verdict) -> Recorded:
    guards = {
        guard.guard: {
            "score": guard.score,
            "threshold": guard.threshold,
            "fired": guard.fired,
            "action": guard.action,
            "place": guard.place,
            "error": guard.error,
            "concept": guard.concept,
            "method": guard.method,
        }
        for guard in verdict.guards
    }
    return Recorded(
        verdict.request_id, "", "", verdict.model, verdict.policy, verdict.outcome, guards
    )
