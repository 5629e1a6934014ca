"""Policies resolved against one image model: decisions and verdicts from the guards' readings.

Needs torch (through steering): imported where a model is, never by `import guard`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config
from guard.plans.base import LoadedGuard, Plan, finite
from guard.plans.image_guards import ImageGuards
from guard.plans.selection import GuardSelection, PolicyPlans, resolve
from guard.verdict import Done, GuardVerdict
from steering.engines.diffusion.fit import GuardedPipeline
from steering.hidden.rows import RowGuard
from steering.images.embedding import ImageReading

Decision = Literal["generate", "block", "replace", "fail"]


@dataclass(frozen=True)
class ImagePlan(Plan[ImageReading]):
    """A policy for one image model."""

    @property
    def acts_on_guidance(self) -> bool:
        """Whether a guard may act on the guidance, which requires a scale of more than 1."""
        return any(row.acts and guard.method.seam == "guidance" for row, guard in self._carried)

    @property
    def _carried(self) -> Iterator[tuple[RowGuard, LoadedGuard]]:
        return zip(self.rows(), self.guards, strict=True)

    @property
    def inspects_images(self) -> bool:
        """Whether a guard reads the image itself, and may change or block it."""
        return any(guard.method.decides != "before" for guard in self.guards)

    def prompt_rows(self) -> tuple[RowGuard, ...]:
        """The guards of a row that read the prompt."""
        late = {guard.name for guard in self.guards if guard.method.decides != "before"}
        return tuple(row for row in self.rows() if row.name not in late)

    @property
    def last(self) -> ImagePlan:
        """The plan for a replacement: a replacement that does not pass is blocked."""
        return replace(self, fallback="block", replacement=None)

    def decide(self, readings: Mapping[str, ImageReading]) -> Decision:
        """The decision on a row, from the readings of its guards so far.

        "fail" means that a guard met NaN, and the policy fails closed.
        """
        if self.on_error == "closed" and any(not reading.valid for reading in readings.values()):
            return "fail"
        done = {
            self.done(guard, reading)
            for guard in self.guards
            if (reading := readings.get(guard.name)) is not None and reading.fired
        }
        return "block" if "block" in done else "replace" if "replace" in done else "generate"

    def done(self, guard: LoadedGuard, reading: ImageReading) -> Done:
        """The action taken for a reading that has fired.

        "none" where only the text past the encoder's length has the concept: it conditions nothing.
        """
        if guard.shadow or not self.acts:
            return super().done(guard, reading)
        if not reading.resolved:
            return self.fallback
        untouched = reading.steps == 0 and reading.after is None
        return "none" if guard.method.seam == "embedding" and untouched else guard.action

    def _guard_verdict(self, guard: LoadedGuard, reading: ImageReading, done: Done) -> GuardVerdict:
        return GuardVerdict(
            guard=guard.name,
            concept=guard.concept,
            method=guard.method.name,
            score=finite(reading.score),
            threshold=reading.threshold,
            fired=reading.fired,
            action=done,
            position=reading.position if reading.fired else None,
            error=None if reading.valid else "the guard met NaN in what it reads",
            steps=reading.steps,
            after=reading.after,
            area=reading.area,
            peak=reading.peak,
        )


class ImagePlans(PolicyPlans[ImagePlan]):
    """The guards that fit one image model, stacked, and every policy resolved against them.

    A guard that does not fit stays out of `stacks` and breaks the policies that name it.
    """

    def __init__(self, config: Config, pipeline: GuardedPipeline, *, name: str) -> None:
        self.model = name
        guards = ImageGuards(config, pipeline, name=name)
        self.stacks = guards.stacks
        loaded = {guard: fitted for guard, (fitted, _) in guards.selection.fit.items()}
        # what is resolved later must not keep the tensors of guards, which the stacks have
        found = guards.selection
        selection = GuardSelection(dict.fromkeys(loaded), found.broken, found.others, found.texts)

        def resolved(policy: str, settings: PolicyConfig) -> ImagePlan:
            return resolve(ImagePlan, policy, settings, loaded, selection)

        super().__init__(config, resolved, selection)
