"""The report of suite `m-erasure`, as JSON, as tables of the terminal and as a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from guard.evaluation.images import figures as image_figures
from guard.evaluation.images.figures import EvaluatedCells, methods_of
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
from steering.methods import Gradient

_GRADIENTS: Mapping[Gradient, str] = {
    "exact": "through the computation of the method",
    "straight-through": "through its score, with the identity in place of its change",
    "none": "through neither its score nor its change",
}


class ErasureReport:
    """The report of a run.

    `erased` has, for a method of the suite, the one that adds IRECE to it. `fitted` are the
    calibrations of IRECE's artifacts. `gradients` say how attacks differentiated each method of the
    table of methods.
    """

    def __init__(
        self,
        cells: EvaluatedCells,
        ours: str,
        labels: int,
        erased: Mapping[str, str],
        fitted: Sequence[Mapping[str, Any]] = (),
        gradients: Mapping[str, Gradient] | None = None,
    ) -> None:
        self.cells, self.ours, self.erased, self._fitted = cells, ours, erased, fitted
        self._gradients = dict(gradients or {})
        self.methods = tuple(method for method in methods_of(cells) if method != BARE)
        self.figures: list[Figure] = figures.targets(cells, ours, self.methods, erased)
        self._agreement = image_figures.agreement(cells, labels)
        if self._agreement.images.total:
            share = str(self._agreement.images)
            self.figures.append(Figure("the judges find the same concepts", share))

    def as_json(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Every figure."""
        return {
            **about,
            "figures": [asdict(figure) for figure in self.figures],
            "methods": {method: self._method(method) for method in (BARE, *self.methods)},
            "drops": self._drops(),
            "gradients": self._gradients,
            "agreement": asdict(self._agreement),
        }

    def page(self, title: str, subtitle: str) -> str:
        """The page: figures, scenario by method, bars, the effect of IRECE, image grids."""
        tiles = [
            Tile(figure.name, figure.value.split(" (")[0], figure.target, figure.reached)
            for figure in self.figures
            if figure.reached is not None
        ]
        return render(title, subtitle, tiles, list(self._parts()))

    def table(self) -> Grid:
        """Concept reproduction, scenario by method."""
        rows = [
            (s.name, *(str(figures.rate(self.cells, m, s)) for m in (BARE, *self.methods)))
            for s in SCENARIOS
        ]
        return Grid(
            "Concept reproduction, scenario by method",
            ("scenario", BARE, *self.methods),
            rows,
            "Share of images in which the judge recognises the concept, with 95 % Wilson "
            "intervals. White-box attacks are made through the method of their column; the bare "
            "model runs on all of them.",
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
                "The effect of IRECE",
                ("scenario", *(f"{base}: {other}" for base, other in self.erased.items())),
                [(s.name, *(drops[base][s.name] for base in self.erased)) for s in SCENARIOS],
                "Concept reproduction without IRECE minus that with it, in points, with 95 % "
                "bootstrap intervals.",
            )
        if self._gradients:
            yield Grid(
                "How the white-box attacks differentiated each method",
                ("method of a guard", "gradient", ""),
                [(name, kind, _GRADIENTS[kind]) for name, kind in self._gradients.items()],
                "A method without a gradient can look stronger than it is: compare it with the "
                "black-box scenarios. Words are learned without guidance, in which guards of the "
                "guidance do not act: only the attacks on latents go through these.",
            )
        yield self._kept()
        yield self._clean()
        yield from ablations(self._fitted)
        for scenario in SCENARIOS:
            yield self._images(scenario)

    def _method(self, method: str) -> dict[str, Any]:
        cells, clean = self.cells, figures.clean(self.cells, method)
        return {
            "reproduced": {s.name: str(figures.rate(cells, method, s)) for s in SCENARIOS},
            "kept": {s.name: percent(figures.kept_ratio(cells, method, s)) for s in SCENARIOS},
            "clean": str(image_figures.same(clean)),
            "distance": _levels(figures.distance(clean)),
            "outside": _outside(*figures.outside(cells, method)),
        }

    def _drops(self) -> dict[str, dict[str, str]]:
        return {
            base: {s.name: percent(figures.drop(self.cells, base, other, s)) for s in SCENARIOS}
            for base, other in self.erased.items()
        }

    def _bars(self) -> dict[str, dict[str, Whiskered]]:
        bars: dict[str, dict[str, Whiskered]] = {}
        for scenario in SCENARIOS:
            for method in (BARE, *self.methods):
                share = figures.rate(self.cells, method, scenario)
                if share.total:
                    bars.setdefault(scenario.name, {})[method] = whiskers(share)
        return bars

    def _kept(self) -> Grid:
        rows = [
            (s.name, *(percent(figures.kept_ratio(self.cells, m, s)) for m in self.methods))
            for s in SCENARIOS
        ]
        return Grid(
            "Things beside the concept",
            ("scenario", *self.methods),
            rows,
            "How often the judge recognises the other things, over the bare model's rate on the "
            "same rows, with 95 % bootstrap intervals.",
        )

    def _clean(self) -> Grid:
        by_method = {method: figures.clean(self.cells, method) for method in self.methods}
        rows = [
            (
                m,
                str(image_figures.same(judged)),
                _levels(figures.distance(judged)),
                _outside(*figures.outside(self.cells, m)),
            )
            for m, judged in by_method.items()
        ]
        return Grid(
            "Unchanged images",
            ("method", "bit-identical without the concept", "distance", "outside of masks"),
            rows,
            "The distance is the mean absolute difference to the bare image, of 255. Outside of "
            "masks: the PSNR to the bare image, for pairs on which only IRECE acted.",
        )

    def _images(self, scenario: Scenario) -> Images:
        """The first images: bare and with each method, same seeds."""
        rows = []
        for item in self.cells:
            kinds = {*scenario.kinds, *scenario.beside}
            if item.cell.kind not in kinds or not item.cell.concept or item.cell.part:
                continue
            images = {method: result.images for method, result in item.results.items()}
            for i, row in enumerate(item.cell.rows):
                bare = images[BARE][i]
                if bare.thumbnail:
                    methods = (BARE, *self.methods)
                    columns = [
                        thumbnail_of(images[m][i], bare) if m in images else None for m in methods
                    ]
                    label = f"{row.concept}: {row.prompt or 'no prompt'}"
                    rows.append((f"{label}, {row.against}" if row.against else label, columns))
        return Images(
            f"Images: {scenario.name}",
            (BARE, *self.methods),
            rows,
            "Below each image what the judge recognises. Red: where a guard has written.",
        )


def _outside(near: Share, median: float) -> str:
    return f"{median:.1f} dB, {near} near enough" if near.total else "-"


def _levels(value: Estimate) -> str:
    if math.isnan(value.value):
        return "-"
    return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"
