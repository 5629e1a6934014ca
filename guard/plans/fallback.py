"""The fallback of one image request, shared by serving, evaluation and the attached use.

An image is generated from the request; or again without guards that met NaN (where the policy fails
open); or again from the policy's replacement, which shows nothing of the request; or the request is
blocked, or it fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from guard.plans.images import Decision, ImagePlan
from steering.hidden.rows import RowGuard
from steering.images.embedding import ImageReading

Next = Literal["go", "again", "block", "fail"]
"""The step after readings: go on, start again with `prompt` and `guards`, or end the request."""


class Fallback:
    """The prompt and guards with which one request is generated, and the step after its readings.

    `replaced` is True once the policy's replacement has become the prompt; nothing else of the
    request (an image, learned words, noise) may be used then.
    """

    def __init__(self, plan: ImagePlan, prompt: str) -> None:
        self.plan, self.prompt = plan, prompt
        self.replaced = False
        self.readings: Mapping[str, ImageReading] = {}
        """The readings for the verdict: those that led to a replacement where it passes, those of
        the replacement where it does not pass either."""
        self._without: frozenset[str] = frozenset()

    @property
    def guards(self) -> tuple[RowGuard, ...]:
        """The guards that the row carries."""
        return tuple(guard for guard in self.plan.rows() if guard.name not in self._without)

    def on_prompt(self, readings: Mapping[str, ImageReading]) -> Next:
        """The step after the readings of the prompt."""
        decision = self._decide(readings)
        if decision == "generate" and not self.replaced and self._invalid - self._without:
            self._without = self._invalid
            return "again"
        return self._next(decision)

    def on_output(self, readings: Mapping[str, ImageReading]) -> Next:
        """The step after all readings of a finished image."""
        return self._next(self._decide(readings))

    @property
    def _invalid(self) -> frozenset[str]:
        return frozenset(name for name, reading in self.readings.items() if not reading.valid)

    def _decide(self, readings: Mapping[str, ImageReading]) -> Decision:
        if not self.replaced:
            self.readings = {**self.readings, **readings}
            return self.plan.decide(readings)
        decision = self.plan.last.decide(readings)
        if decision == "generate":
            self.readings = {**readings, **self.readings}
        else:
            self.plan, self.readings = self.plan.last, readings
        return decision

    def _next(self, decision: Decision) -> Next:
        if decision == "generate":
            return "go"
        if decision == "fail":
            return "fail"
        if decision == "replace" and self.plan.replacement is not None and not self.replaced:
            self.replaced = True
            self.prompt, self._without = self.plan.replacement, self._invalid
            return "again"
        return "block"
