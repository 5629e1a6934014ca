"""The way of one image request through its policy: the one fallback that serving, evaluation and
the attached use share.

A request may be generated as asked, once more without guards that met NaN (a policy that fails
open), or once more with the policy's replacement, which shows nothing of what was asked for; or it
is blocked, or it fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from guard.plans.images import Decision, ImagePlan
from steering.hidden.rows import RowGuard
from steering.images.embedding import ImageReading

Next = Literal["go", "again", "block", "fail"]
"""What follows from readings: go on, start again with `prompt` and `guards`, or end the request."""


class Fallback:
    """What is generated for one request now, and what follows from the readings of its guards.

    `replaced` is True once the policy's replacement stands in the prompt's place; nothing that the
    request brought (an image, learned words, noise) goes with it then.
    """

    def __init__(self, plan: ImagePlan, prompt: str) -> None:
        self.plan, self.prompt = plan, prompt
        self.replaced = False
        self.readings: Mapping[str, ImageReading] = {}
        """For the verdict. Of a replacement that passes, they tell why it was generated; of one
        that does not pass either, its own."""
        self._without: frozenset[str] = frozenset()

    @property
    def guards(self) -> tuple[RowGuard, ...]:
        """The guards that the row carries."""
        return tuple(guard for guard in self.plan.rows() if guard.name not in self._without)

    def on_prompt(self, readings: Mapping[str, ImageReading]) -> Next:
        """What follows from the readings of the prompt."""
        decision = self._decide(readings)
        if decision == "draw" and not self.replaced and self._invalid - self._without:
            self._without = self._invalid
            return "again"
        return self._next(decision)

    def on_output(self, readings: Mapping[str, ImageReading]) -> Next:
        """What follows from all readings of a finished image."""
        return self._next(self._decide(readings))

    @property
    def _invalid(self) -> frozenset[str]:
        return frozenset(name for name, reading in self.readings.items() if not reading.valid)

    def _decide(self, readings: Mapping[str, ImageReading]) -> Decision:
        if not self.replaced:
            self.readings = {**self.readings, **readings}
            return self.plan.decide(readings)
        decision = self.plan.last.decide(readings)
        if decision == "draw":
            self.readings = {**readings, **self.readings}
        else:
            self.plan, self.readings = self.plan.last, readings
        return decision

    def _next(self, decision: Decision) -> Next:
        if decision == "draw":
            return "go"
        if decision == "fail":
            return "fail"
        if decision == "replace" and self.plan.replacement is not None and not self.replaced:
            self.replaced = True
            self.prompt, self._without = self.plan.replacement, self._invalid
            return "again"
        return "block"
