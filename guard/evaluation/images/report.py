"""The report of suite `images`, as JSON, as tables of the terminal and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from guard.data.prompts import ImagePrompt
from guard.evaluation.images import figures as figures
from guard.evaluation.images import targets as targets
from guard.evaluation.images.cells import JudgedImage
from guard.evaluation.images.costs import Cost
from guard.evaluation.images.figures import ASKING, EvaluatedCells
from guard.evaluation.images.suite import BARE, SILENT_KINDS
from guard.evaluation.images.targets import Figure, percent
from guard.evaluation.shares import Share
from guard.reporting import plots
from guard.reporting.page import Grid, Images, Part, Plot, Tile, render
from guard.reporting.plots import Whiskered
from guard.reporting.pngs import overlaid, uri

SHOWN = 12
_GRID_KINDS = ("direct", "paraphrase", "pair")
LEVELS = {True: "reached", False: "not reached", None: ""}


@dataclass(frozen=True, slots=True)
class ReportedPrompt:
    """A prompt in the report, with what the judge recognises in its image."""

    concept: str
    kind: str
    prompt: str
    score: float | None
    after: float | None
    steps: int
    found: str

    @classmethod
    def of(cls, row: ImagePrompt, image: JudgedImage) -> ReportedPrompt:
        found = ", ".join(image.view.concepts) if image.view else ""
        guard = (image.score, image.after, image.steps)
        return cls(row.concept, row.kind, row.prompt, *guard, found)


class ImageReport:
    """The report of a run. `ours` is None if only the bare model ran.

    `parts` are methods that are components of ours, `costs` those of the methods.
    """

    def __init__(
        self,
        cells: EvaluatedCells,
        ours: str | None,
        labels: int,
        parts: Sequence[str] = (),
        costs: Mapping[str, Cost] | None = None,
    ) -> None:
        self.cells, self.ours, self.costs = cells, ours, costs or {}
        self.agreement = figures.agreement(cells, labels)
        self.methods = tuple(m for m in figures.methods_of(cells) if m != BARE)
        self.figures: list[Figure] = targets.bare(cells)
        if ours:
            baselines = [method for method in self.methods if method not in parts]
            self.figures = targets.ours(cells, ours, baselines) + self.figures
        if self.agreement.images.total:
            self.figures += [
                Figure("the judges find the same concepts", str(self.agreement.images)),
                Figure("the judges agree on a label", str(self.agreement.labels)),
                Figure("the judges agree on the style", str(self.agreement.style)),
            ]

    def as_json(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Every figure, and the prompts behind the bad ones."""
        return {
            **about,
            "figures": [asdict(figure) for figure in self.figures],
            "methods": {method: self._method(method) for method in (BARE, *self.methods)},
            "attacks": {
                kind: {
                    method: {str(effort): asdict(share) for effort, share in line.items()}
                    for method, line in lines.items()
                }
                for kind, lines in self._curves().items()
            },
            "costs": {method: asdict(cost) for method, cost in self.costs.items()},
            "agreement": asdict(self.agreement),
            "reproduced": [asdict(row) for row in self._bad()] if self.ours else [],
            "false_alarms": [asdict(row) for row in self._alarms()] if self.ours else [],
        }

    def page(self, title: str, subtitle: str) -> str:
        """The page: figures, the table against the baselines, bars, curves, image grids."""
        tiles = [
            Tile(figure.name, figure.value.split(" (")[0], figure.target, figure.reached)
            for figure in self.figures
            if figure.reached is not None
        ]
        return render(title, subtitle, tiles, list(self._parts()))

    def _parts(self) -> Iterator[Part]:
        yield Grid(
            "Figures",
            ("figure", "value (95 % interval)", "target", ""),
            [(f.name, f.value, f.target, LEVELS[f.reached]) for f in self.figures],
        )
        if not self.methods:
            return
        yield self.table()
        if self.costs:
            yield self._cost_table()
        yield Plot(
            "Concept reproduction by kind of prompt",
            plots.groups(self._bars(), y="concept reproduced, %"),
            "Whiskers are 95 % Wilson intervals.",
        )
        for kind, lines in self._curves().items():
            yield Plot(
                f"Attack: {kind}",
                plots.efforts(
                    {
                        method: {effort: whiskers(share) for effort, share in line.items()}
                        for method, line in lines.items()
                    },
                    x="effort, steps of the search",
                    y="concept reproduced, %",
                ),
                "The best prompt of the search after each effort, with new seeds.",
            )
        yield self._by_concept()
        yield self._by_disguise()
        yield self._images()
        yield _prompts(
            "Prompts that still reproduce the concept", self._bad(), f"Method {self.ours}."
        )
        yield _prompts("False alarms", self._alarms(), f"Method {self.ours}.")

    def table(self) -> Grid:
        """One row a method: reproduction by kind, what is kept, silence, the sum of the errors."""
        rows = []
        for method in (BARE, *self.methods):
            row = self._method(method)
            shares = [row["reproduced"].get(kind, "-") for kind in ASKING]
            others = [row[name] for name in ("kept", *SILENT_KINDS, "blocked", "errors", "margin")]
            rows.append((method, *shares, *others))
        marked = frozenset(i for i, row in enumerate(rows) if row[0] == self.ours)
        names = ("kept, of bare", *SILENT_KINDS, "blocked", "sum of errors", "above ours")
        return Grid(
            "Methods side by side",
            ("method", *ASKING, *names),
            rows,
            "Share of images that show the concept, for each kind of prompt; how often the other "
            "object of a pair is kept, over the bare model's rate; bit-identical images on "
            "prompts without the concept and on hard negatives. The sum of errors is the mean of "
            "the first four columns plus the share of kept objects that is lost.",
            marked,
        )

    def _method(self, method: str) -> dict[str, Any]:
        cells = self.cells
        by_kind = {kind: figures.judgements(cells, method, kind) for kind in ASKING}
        judged = [judgement for part in by_kind.values() for judgement in part]
        row: dict[str, Any] = {
            "reproduced": {k: str(figures.reproduced(part)) for k, part in by_kind.items()},
            "kept": "-",
            "blocked": str(Share.of([image.blocked for _, image in judged])),
            "errors": "-",
            "margin": "-",
        }
        row |= {k: str(figures.same(figures.judgements(cells, method, k))) for k in SILENT_KINDS}
        if method != BARE:
            row["kept"] = percent(figures.kept_ratio(cells, method))
            row["errors"] = percent(figures.errors(cells, method))
            if self.ours and method != self.ours:
                row["margin"] = percent(figures.margin(cells, self.ours, method))
        return row

    def _cost_table(self) -> Grid:
        return Grid(
            "Cost",
            ("method", "an image", "the fit", "on disk"),
            [
                (
                    method,
                    "-" if cost.image_s is None else f"{cost.image_s:.2f} s",
                    "-" if cost.fit_s is None else f"{cost.fit_s:.0f} s",
                    f"{cost.size / 1e6:.2f} MB",
                )
                for method, cost in self.costs.items()
            ],
            "Of one image of a prompt that asks for the concept, on the machine of the run and "
            "beside whatever else it did; of the guards of one concept, the mean over concepts.",
        )

    def _bars(self) -> dict[str, dict[str, Whiskered]]:
        bars: dict[str, dict[str, Whiskered]] = {}
        for kind in ASKING:
            for method in (BARE, *self.methods):
                share = figures.reproduced(figures.judgements(self.cells, method, kind))
                if share.total:
                    bars.setdefault(kind, {})[method] = whiskers(share)
        return bars

    def _curves(self) -> dict[str, dict[str, dict[int, Share]]]:
        curves: dict[str, dict[str, dict[int, Share]]] = {}
        for kind, efforts in figures.attacks(self.cells).items():
            for method in (BARE, *self.methods):
                for effort in efforts:
                    share = figures.reproduced(figures.judgements(self.cells, method, kind, effort))
                    if share.total:
                        curves.setdefault(kind, {}).setdefault(method, {})[effort] = share
        return curves

    def _by_concept(self) -> Grid:
        rows = []
        for kind in ASKING:
            split = {
                method: figures.split_by(figures.judgements(self.cells, method, kind), _concept)
                for method in (BARE, *self.methods)
            }
            for concept in split[BARE]:
                columns_of_row = [split[m].get(concept, ()) for m in (BARE, *self.methods)]
                rows.append(
                    (concept, kind, *(_short(figures.reproduced(part)) for part in columns_of_row))
                )
        rows.sort(key=lambda row: row[0])
        columns = ("concept", "kind", BARE, *self.methods)
        return Grid("Reproduction by concept", columns, rows)

    def _by_disguise(self) -> Grid:
        split = {
            method: figures.split_by(figures.judgements(self.cells, method, "disguise"), _disguise)
            for method in (BARE, *self.methods)
        }
        rows = [
            (disguise, *(_short(figures.reproduced(split[m].get(disguise, ()))) for m in split))
            for disguise in split[BARE]
        ]
        return Grid(
            "Disguises",
            ("disguise", BARE, *self.methods),
            rows,
            "A disguise that the bare model does not understand needs no guard: compare its rate.",
        )

    def _images(self) -> Images:
        """The first images of each concept and kind: bare and with each method, same seeds."""
        rows = []
        for item in self.cells:
            if item.cell.kind not in _GRID_KINDS or not item.cell.concept or item.cell.part:
                continue
            images = {method: item.results[method].images for method in item.results}
            for i, row in enumerate(item.cell.rows):
                bare = images[BARE][i]
                if bare.thumbnail:
                    columns = [
                        thumbnail_of(images[m][i], bare)
                        for m in (BARE, *self.methods)
                        if m in images
                    ]
                    rows.append((f"{row.concept}: {row.prompt}", columns))
        rows.sort(key=lambda row: row[0])
        return Images(
            "Images",
            (BARE, *self.methods),
            rows,
            "Below each image what the judge recognises. Images of a row have the same seed.",
        )

    def _bad(self) -> list[ReportedPrompt]:
        """Prompts whose image shows the concept."""
        judged = [
            p for kind in ASKING for p in figures.judgements(self.cells, self.ours or "", kind)
        ]
        return [ReportedPrompt.of(row, image) for row, image in judged if image.shows(row.concept)]

    def _alarms(self) -> list[ReportedPrompt]:
        """Prompts without the concept whose image changed."""
        judged = [
            p
            for kind in SILENT_KINDS
            for p in figures.judgements(self.cells, self.ours or "", kind)
        ]
        return [ReportedPrompt.of(row, image) for row, image in judged if not image.same]


def thumbnail_of(image: JudgedImage, bare: JudgedImage) -> tuple[str, str]:
    """A judged image as a data URI, with its mask in red, and what the judge recognises."""
    if image.blocked:
        return "", "blocked"
    thumbnail = (bare if image.same else image).thumbnail
    if thumbnail and image.mask:
        thumbnail = overlaid(thumbnail, image.mask)
    concepts = ", ".join(image.view.concepts) if image.view else ""
    return uri(thumbnail) if thumbnail else "", concepts or "nothing"


def _prompts(title: str, rows: Sequence[ReportedPrompt], caption: str) -> Grid:
    return Grid(
        title,
        ("concept", "kind", "prompt", "score", "after", "steps", "found"),
        [
            (
                row.concept,
                row.kind,
                row.prompt,
                _number(row.score),
                _number(row.after),
                str(row.steps),
                row.found,
            )
            for row in rows[:SHOWN]
        ],
        f"{caption} {len(rows)} in all; the first {SHOWN} are here, all of them in the JSON file.",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(share: Share) -> str:
    return f"{share.value:.0%} of {share.total}" if share.total else "-"


def whiskers(share: Share) -> Whiskered:
    """A share and its interval, as plots take them."""
    return (share.value, *share.interval)


def _concept(row: ImagePrompt) -> str:
    return row.concept


def _disguise(row: ImagePrompt) -> str:
    return row.how
