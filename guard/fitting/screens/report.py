"""The report of a screen's fit, of texts or of images, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from guard.artifact import Artifact
from guard.evaluation.shares import Share
from guard.fitting.judgement import HeldOut, Remedies, judgement, judgement_grid
from guard.fitting.screens.figures import ScreenFigures
from guard.fitting.screens.fit import ScreenFit
from guard.reporting import plots
from guard.reporting.page import Grid, Images, Part, Plot, Tile, render
from guard.reporting.values import rows

_AUC, _RECALL = 0.95, 0.80
_ALARMS = 5
"""In multiples of the rate that was asked for, the share of benign texts over which a screen is not
usable."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a screen reads, as its report calls it."""

    one: str
    article: str
    title: str
    how: str
    altered: str

    @property
    def many(self) -> str:
        return f"{self.one}s"


TEXTS = Kind(
    *("text", "a", "Disguises", "disguise"),
    "The same held-out texts, hidden whole. Long ones are left out here.",
)
IMAGES = Kind(
    *("image", "an", "Alterations", "alteration"), "Some of the held-out images, altered."
)


class Fit(Protocol):
    """A fitted screen with what it is judged by."""

    @property
    def artifact(self) -> Artifact: ...

    @property
    def test(self) -> ScreenFigures | None: ...

    @property
    def held_out(self) -> HeldOut: ...


def judged(fit: Fit, kind: Kind) -> str:
    """Whether the screen is usable, and what to do where it is not: one line."""
    rate = float(str(fit.artifact.meta.calibration["false_positive_rate"]))
    benign, hit = fit.held_out.fired("benign"), fit.held_out.hit
    faults: tuple[str, ...] = ()
    if hit and benign.at_least > _ALARMS * rate:
        faults = (
            f"fires on {benign.count} of {benign.total} held-out benign {kind.many}, as on "
            f"{hit[0].prompt[:100]!r}; add {kind.many} of that kind, or ask for a lower --fpr",
        )
    remedies = Remedies(
        f"add unsafe {kind.many} like these", "a higher --fpr, or another --kind", faults
    )
    return judgement(fit.held_out, remedies)


def as_json(fit: ScreenFit, took_s: float) -> dict[str, Any]:
    """All figures of a fit, with the scores that the plots show."""
    return json_of(fit, TEXTS, took_s)


def as_page(fit: ScreenFit) -> str:
    """The page: figures on held-out collections, plain and in disguise, and settings."""
    return page_of(fit, TEXTS)


def json_of(fit: Fit, kind: Kind, took_s: float) -> dict[str, Any]:
    """`as_json` of a screen of any kind."""
    meta = fit.artifact.meta
    scores = {} if fit.test is None else fit.test.scores
    return {
        "method": meta.method,
        "concept": meta.concept,
        "judgement": judged(fit, kind),
        "model": meta.model.model_dump(mode="json"),
        "tensors_sha256": meta.tensors_sha256,
        "settings": meta.settings,
        "calibration": meta.calibration,
        **fit.held_out.as_json(),
        "scores": {name: [round(float(s), 5) for s in part] for name, part in scores.items()},
        "took_s": round(took_s, 1),
    }


def page_of(fit: Fit, kind: Kind, sheets: Sequence[Images] = ()) -> str:
    """`as_page` of a screen of any kind; `sheets` stand behind the judgement."""
    meta = fit.artifact.meta
    figures = {name: value for name, value in meta.calibration.items() if name != "tested"}
    parts: list[Part] = [judgement_grid(judged(fit, kind)), *sheets]
    if fit.test is not None:
        parts += _test_parts(fit.test, meta.settings, kind)
    parts += [
        *fit.held_out.grids(),
        Grid("Calibration", ("figure", "value"), rows(figures)),
        Grid("Settings", ("setting", "value"), rows(meta.settings)),
    ]
    subtitle = (
        f"Screen of {kind.many} on {meta.model.name}, fitted {meta.created.isoformat()}; "
        f"tensors {meta.tensors_sha256[:12]}"
    )
    return render(f"Fit of {meta.concept}", subtitle, _tiles(fit.test, kind), parts)


def _tiles(test: ScreenFigures | None, kind: Kind) -> list[Tile]:
    if test is None:
        return []
    recall, false = test.all_recall, test.all_false_positives
    tiles = [
        Tile(
            f"Held-out unsafe {kind.many} that fire",
            _percent(recall),
            f"at least {_RECALL:.0%}",
            recall.value >= _RECALL,
        ),
        Tile(f"Held-out benign {kind.many} that fire", _percent(false)),
    ]
    if test.auc is not None:
        area = Tile("Area under the curve", f"{test.auc:.3f}", f"at least {_AUC}", test.auc >= _AUC)
        tiles.insert(0, area)
    return tiles


def _test_parts(test: ScreenFigures, settings: dict[str, Any], kind: Kind) -> list[Part]:
    threshold = float(settings["threshold"])
    by_label = {
        label: np.concatenate(
            [scores for name, scores in test.scores.items() if name.startswith(label)]
        )
        for label in ("unsafe", "benign")
        if any(name.startswith(label) for name in test.scores)
    }
    finite = {label: scores[np.isfinite(scores)].tolist() for label, scores in by_label.items()}
    parts: list[Part] = [
        Plot(
            f"Scores: the probability that {kind.article} {kind.one} is unsafe",
            plots.histograms(finite, {"threshold": threshold}),
            f"{kind.many.capitalize()} of collections that were left out of the fit. The threshold "
            f"comes from other {kind.many}, so the share of benign ones above it may differ from "
            "the requested rate.",
        )
    ]
    if len(finite) == 2:
        point = (test.all_false_positives.value, test.all_recall.value)
        parts.append(
            Plot(
                "Receiver operating characteristic",
                plots.receiver(finite["unsafe"], finite["benign"], {"threshold": point}),
            )
        )
    collections = [
        [f"{label}: {name}", str(share)]
        for label, shares in (("unsafe", test.recall), ("benign", test.false_positives))
        for name, share in shares.items()
    ]
    disguises = [[name, str(a), str(b)] for name, (a, b) in test.disguises.items()]
    return [
        *parts,
        Grid("Held-out collections", ("collection", f"{kind.many} that fire"), collections),
        Grid(
            kind.title,
            (kind.how, f"unsafe {kind.many} that fire", f"benign {kind.many} that fire"),
            disguises,
            kind.altered,
        ),
    ]


def _percent(share: Share) -> str:
    return f"{share.value:.1%}" if share.total else "-"
