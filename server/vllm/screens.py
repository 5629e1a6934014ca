"""The screens of text of one revision of the configuration, for vLLM's HTTP server."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from classifiers.text.encoder.model import TextEncoder
from guard.config.schema import Config
from guard.errors import ConfigError
from guard.plans.screens import TextPlan, TextPlans
from guard.plans.text_encoders import added_encoder
from server.screening.texts.screener import Screener
from server.vllm.recording import process_recording


class TextScreens:
    """Plans and classifiers. A reload makes new ones; the old are closed after their last
    request."""

    def __init__(
        self, config: Config, policies: Collection[str], earlier: TextScreens | None = None
    ) -> None:
        """`policies` are those that requests may name; `earlier` gives its encoder, if it has one.

        Raises ConfigError where one of them would send requests elsewhere, and GuardFailed where
        one cannot be applied.
        """
        known = earlier.plans.encoder if earlier is not None else None

        def load(name: str) -> TextEncoder:
            if known is not None and known.card.name == name:
                return known
            return added_encoder(name)

        self.plans: TextPlans = TextPlans(config, load)
        for name in policies:
            _require_here(self.plans[name])
            self.plans[name].require_whole()
        self._screener: Screener | None = None
        self._users, self._is_retired = 0, False

    @contextmanager
    def screener(self) -> Iterator[Screener]:
        """What reads the texts of one request; to be used in one event loop."""
        if self._screener is None:
            timed = process_recording().time_reading
            self._screener = Screener(self.plans.cascade, self.plans.images, timed=timed)
        self._users += 1
        try:
            yield self._screener
        finally:
            self._users -= 1
            self._close_if_unused()

    def retire(self) -> None:
        """No more requests come."""
        self._is_retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._is_retired and not self._users and self._screener is not None:
            self._screener.close()
            self._screener = None


def _require_here(plan: TextPlan) -> None:
    routes = any(screen.action == "route" for screen in plan.screens)
    if routes and plan.settings.upstream is not None:
        raise ConfigError(
            [
                f"policy {plan.policy!r} routes to the upstream {plan.settings.upstream!r}, and "
                "vLLM has none: leave 'upstream' out, or serve the policy with `guard proxy`"
            ]
        )
