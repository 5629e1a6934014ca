"""The figures of `m-erasure`, for a program (JSON), the terminal and people (a page)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from guard.evaluation.images import figures as image_figures
from guard.evaluation.images.figures import Games, players
from guard.evaluation.images.report import LEVELS, thumbnail_of, whiskers
from guard.evaluation.images.suite import BARE
from guard.evaluation.images.targets import Figure, percent
from guard.evaluation.m_erasure import figures
from guard.evaluation.m_erasure.ablation import ablations
from guard.evaluation.m_erasure.scenarios import SCENARIOS, Scenario
from guard.evaluation.shares import Estimate, Share
from guard.reporting import plots
from guard.reporting.page import Grid, Images, Part, Plot, Tile, render
from guard.reporting.plots import Whiskered


class ErasureReport:
    """What is told of a run; `erased` names for a method the one that is it and IRECE, `fitted` are
    the calibrations of the artifacts of IRECE."""

    def __init__(
        self,
        games: Games,
        ours: str,
        labels: int,
        erased: Mapping[str, str],
        fitted: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.games, self.ours, self.erased, self._fitted = games, ours, erased, fitted
        self.methods = tuple(method for method in players(games) if method != BARE)
        self.figures: list[Figure] = figures.targets(games, ours, self.methods, erased)
        self._agreement = image_figures.agreement(games, labels)
        if self._agreement.images.total:
            told = str(self._agreement.images)
            self.figures.append(Figure("the judges find the same concepts", told))

    def as_json(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Every figure."""
        return {
            **about,
            "figures": [asdict(figure) for figure in self.figures],
            "methods": {method: self._method(method) for method in (BARE, *self.methods)},
            "drops": self._drops(),
            "agreement": asdict(self._agreement),
        }

    def page(self, title: str, subtitle: str) -> str:
        """The page: figures, scenario by method, bars, what IRECE takes off, image grids."""
        tiles = [
            Tile(figure.name, figure.value.split(" (")[0], figure.target, figure.reached)
            for figure in self.figures
            if figure.reached is not None
        ]
        return render(title, subtitle, tiles, list(self._parts()))

    def table(self) -> Grid:
        """Concept reproduction, scenario by method."""
        rows = [
            (s.name, *(str(figures.rate(self.games, m, s)) for m in (BARE, *self.methods)))
            for s in SCENARIOS
        ]
        return Grid(
            "Concept reproduction, scenario by method",
            ("scenario", BARE, *self.methods),
            rows,
            "Share of images in which the judge finds the concept, with 95 % Wilson intervals. "
            "White-box attacks are made through the method that plays them; the bare model plays "
            "all of them.",
        )

    def _parts(self) -> Iterator[Part]:
        yield Grid(
            "Figures",
            ("figure", "value (95 % interval)", "target", ""),
            [(f.name, f.value, f.target, LEVELS[f.reached]) for f in self.figures],
        )
        yield self.table()
        yield Plot(
            "Concept reproduction by scenario",
            plots.groups(self._bars(), y="concept reproduced, %"),
            "Whiskers are 95 % Wilson intervals.",
        )
        if self.erased:
            drops = self._drops()
            yield Grid(
                "What IRECE takes off",
                ("scenario", *(f"{base}: {other}" for base, other in self.erased.items())),
                [(s.name, *(drops[base][s.name] for base in self.erased)) for s in SCENARIOS],
                "Concept reproduction without less that with, points and 95 % bootstrap intervals.",
            )
        yield self._kept()
        yield self._clean()
        yield from ablations(self._fitted)
        for scenario in SCENARIOS:
            yield self._images(scenario)

    def _method(self, method: str) -> dict[str, Any]:
        games, clean = self.games, figures.clean(self.games, method)
        return {
            "reproduced": {s.name: str(figures.rate(games, method, s)) for s in SCENARIOS},
            "kept": {s.name: percent(figures.kept_ratio(games, method, s)) for s in SCENARIOS},
            "clean": str(image_figures.same(clean)),
            "distance": _levels(figures.distance(clean)),
            "outside": _outside(*figures.outside(games, method)),
        }

    def _drops(self) -> dict[str, dict[str, str]]:
        return {
            base: {s.name: percent(figures.drop(self.games, base, other, s)) for s in SCENARIOS}
            for base, other in self.erased.items()
        }

    def _bars(self) -> dict[str, dict[str, Whiskered]]:
        bars: dict[str, dict[str, Whiskered]] = {}
        for scenario in SCENARIOS:
            for method in (BARE, *self.methods):
                share = figures.rate(self.games, method, scenario)
                if share.total:
                    bars.setdefault(scenario.name, {})[method] = whiskers(share)
        return bars

    def _kept(self) -> Grid:
        rows = [
            (s.name, *(percent(figures.kept_ratio(self.games, m, s)) for m in self.methods))
            for s in SCENARIOS
        ]
        return Grid(
            "What stands beside the concept",
            ("scenario", *self.methods),
            rows,
            "How often the judge finds the other things, over the bare model's rate on the same "
            "rows, with 95 % bootstrap intervals.",
        )

    def _clean(self) -> Grid:
        found = {method: figures.clean(self.games, method) for method in self.methods}
        rows = [
            (
                m,
                str(image_figures.same(own)),
                _levels(figures.distance(own)),
                _outside(*figures.outside(self.games, m)),
            )
            for m, own in found.items()
        ]
        return Grid(
            "What stays",
            ("method", "bit-identical without the concept", "distance", "outside of masks"),
            rows,
            "The distance is the mean absolute difference to the bare image, of 255. Outside of "
            "masks: the PSNR to the bare image, of pairs on which nothing else acted.",
        )

    def _images(self, scenario: Scenario) -> Images:
        """The first images, bare beside the methods, same seeds."""
        rows = []
        for each in self.games:
            kinds = {*scenario.kinds, *scenario.beside}
            if each.cell.kind not in kinds or not each.cell.concept or each.cell.part:
                continue
            shots = {method: result.shots for method, result in each.results.items()}
            for i, row in enumerate(each.cell.rows):
                bare = shots[BARE][i]
                if bare.thumbnail:
                    there = (BARE, *self.methods)
                    shown = [thumbnail_of(shots[m][i], bare) if m in shots else None for m in there]
                    label = f"{row.concept}: {row.prompt or 'no prompt'}"
                    rows.append((f"{label}, {row.against}" if row.against else label, shown))
        return Images(
            f"Images: {scenario.name}",
            (BARE, *self.methods),
            rows,
            "Below each what the judge finds in it. Red: where a guard has written.",
        )


def _outside(near: Share, median: float) -> str:
    return f"{median:.1f} dB, {near} near enough" if near.total else "-"


def _levels(value: Estimate) -> str:
    if math.isnan(value.value):
        return "-"
    return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"
