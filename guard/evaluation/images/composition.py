"""The best pair of fitted guards of a concept, by the measured sum of errors.

Every guard and every pair of two plays the validation prompts, judged by the suite's second
opinion, which tuning may use. The pair with the lowest sum of errors (`figures.errors`) is chosen;
what it comes to is then measured on the suite's own prompts by its judge, beside the two guards
alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config
from guard.errors import DataError
from guard.evaluation.images import figures as figures
from guard.evaluation.images.costs import Cost
from guard.evaluation.images.figures import EvaluatedCells
from guard.evaluation.images.judge import Judges
from guard.evaluation.images.report import ImageReport
from guard.evaluation.images.suite import CLEAN, ImageSuite
from guard.evaluation.images.targets import percent
from guard.evaluation.shares import Estimate, Share
from guard.reporting.page import Grid, Part

PLUS = "+"
"""Between the names of the guards of a combination."""
MOST = 12
"""Guards at most: these have 66 pairs."""


@dataclass(frozen=True)
class Combination:
    """One guard, or two in the order of the configuration."""

    guards: tuple[str, ...]

    @property
    def name(self) -> str:
        return PLUS.join(self.guards)

    @property
    def parts(self) -> list[Combination]:
        """Its guards alone, where it has two."""
        return [Combination((guard,)) for guard in self.guards] if len(self.guards) > 1 else []


@dataclass(frozen=True)
class Tried:
    """What a combination came to on the validation prompts: the sum of its errors, the concept
    reproduced in all prompts that ask for it, and clean images that are the bare model's."""

    combination: Combination
    errors: Estimate
    reproduced: Share
    same: Share

    def as_json(self) -> dict[str, Any]:
        return {
            "guards": list(self.combination.guards),
            "errors": asdict(self.errors),
            "reproduced": asdict(self.reproduced),
            "clean_identical": asdict(self.same),
        }


def combinations_of(guards: Sequence[str], config: Config) -> list[Combination]:
    """Each guard alone, and all pairs, in the order of the configuration.

    Raises DataError for fewer than two guards, too many, or one that the configuration lacks.
    """
    known = [guard.name for guard in config.guards]
    if unknown := [name for name in guards if name not in known]:
        raise DataError(f"the configuration has no guard {unknown[0]!r}: it has {', '.join(known)}")
    ordered = [name for name in known if name in guards]
    if not 2 <= len(ordered) <= MOST:
        raise DataError(f"a pair is chosen among 2 to {MOST} guards, not {len(ordered)}")
    singles = [Combination((name,)) for name in ordered]
    return [*singles, *map(Combination, combinations(ordered, 2))]


def with_policies(config: Config, tried: Sequence[Combination]) -> Config:
    """The configuration with a policy for each combination, under its name."""
    policies = {each.name: PolicyConfig(guards=each.guards) for each in tried}
    return config.model_copy(update={"policies": {**config.policies, **policies}})


def suite_of(suite: ImageSuite, tried: Sequence[Combination], ours: Combination) -> ImageSuite:
    """The suite with these combinations as its methods."""
    methods = {each.name: each.name for each in tried}
    changes = {"methods": methods, "ours": ours.name, "parts": (), "attacked": ()}
    return suite.model_copy(update=changes)


def choosing_judges(judges: Judges) -> Judges:
    """The judge that chooses: the second opinion, or the only judge that there is."""
    return Judges(judges.second or judges.judge)


def tried_on(cells: EvaluatedCells, tried: Sequence[Combination]) -> list[Tried]:
    """The figures of combinations, the lowest sum of errors first.

    Raises DataError where a sum cannot be computed: there are no pairs, or the bare model keeps
    nothing in them.
    """
    results = [_tried(cells, each) for each in tried]
    if any(math.isnan(result.errors.value) for result in results):
        raise DataError("the sum of errors needs validation prompts of the kind pair, with `kept`")
    return sorted(results, key=lambda result: result.errors.value)


def best_pair(tried: Sequence[Tried], least_same: float) -> Combination:
    """The pair with the lowest sum of errors, among those that leave at least this share of clean
    images as they are. Raises DataError where there is none."""
    pairs = [each for each in tried if len(each.combination.guards) > 1]
    fit = [each for each in pairs if not each.same.total or each.same.value >= least_same]
    if not fit:
        most = max(each.same.value for each in pairs)
        raise DataError(
            f"no pair leaves {least_same:.1%} of the clean images as they are, the best {most:.1%}:"
            " give gated guards, or a lower --least-same"
        )
    return fit[0].combination


def _tried(cells: EvaluatedCells, combination: Combination) -> Tried:
    name = combination.name
    asked = [
        image.shows(row.concept)
        for kind in figures.ASKING
        for row, image in figures.judgements(cells, name, kind)
    ]
    same = figures.same(figures.judgements(cells, name, CLEAN))
    return Tried(combination, figures.errors(cells, name), Share.of(asked), same)


class CompositionReport(ImageReport):
    """The report of the chosen pair on the test prompts, with the table that it was chosen by."""

    def __init__(
        self,
        cells: EvaluatedCells,
        chosen: Combination,
        tried: Sequence[Tried],
        labels: int,
        costs: Mapping[str, Cost],
    ) -> None:
        parts = [part.name for part in chosen.parts]
        super().__init__(cells, chosen.name, labels, parts, costs)
        self._chosen, self._tried = chosen, tried

    def as_json(self, about: Mapping[str, Any]) -> dict[str, Any]:
        validation = [each.as_json() for each in self._tried]
        return {
            **super().as_json(about),
            "chosen": list(self._chosen.guards),
            "validation": validation,
        }

    def _parts(self) -> Iterator[Part]:
        yield self.choice()
        yield from super()._parts()

    def choice(self) -> Grid:
        """One row a combination, the lowest sum of errors first."""
        rows = [
            (
                each.combination.name,
                percent(each.errors),
                str(each.reproduced),
                str(each.same),
            )
            for each in self._tried
        ]
        marked = [i for i, row in enumerate(rows) if row[0] == self._chosen.name]
        return Grid(
            "Combinations on the validation prompts",
            ("guards", "sum of errors", "concept reproduced", "clean, identical"),
            rows,
            "Judged by the second opinion. The pair with the lowest sum of errors was chosen.",
            frozenset(marked),
        )
