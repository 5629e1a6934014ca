"""The report of a screen's fit, as JSON and as a page."""

from __future__ import annotations

from typing import Any

import numpy as np

from guard.evaluation.shares import Share
from guard.fitting.judgement import Remedies, judgement, judgement_grid
from guard.fitting.screens.figures import ScreenFigures
from guard.fitting.screens.fit import ScreenFit
from guard.reporting import plots
from guard.reporting.page import Grid, Plot, Tile, render
from guard.reporting.values import rows

_AUC, _RECALL = 0.95, 0.80
_ALARMS = 5
"""In multiples of the rate that was asked for, the share of benign texts over which a screen is not
usable."""


def judged(fit: ScreenFit) -> str:
    """Whether the screen is usable, and what to do where it is not: one line."""
    rate = float(str(fit.artifact.meta.calibration["false_positive_rate"]))
    benign, hit = fit.held_out.fired("benign"), fit.held_out.hit
    faults: tuple[str, ...] = ()
    if hit and benign.at_least > _ALARMS * rate:
        faults = (
            f"fires on {benign.count} of {benign.total} held-out benign texts, as on "
            f"{hit[0].prompt[:100]!r}; add texts of that kind, or ask for a lower --fpr",
        )
    remedies = Remedies("add unsafe texts like these", "a higher --fpr, or another --kind", faults)
    return judgement(fit.held_out, remedies)


def as_json(fit: ScreenFit, took_s: float) -> dict[str, Any]:
    """All figures of a fit, with the scores that the plots show."""
    meta = fit.artifact.meta
    scores = {} if fit.test is None else fit.test.scores
    return {
        "method": meta.method,
        "concept": meta.concept,
        "judgement": judged(fit),
        "model": meta.model.model_dump(mode="json"),
        "tensors_sha256": meta.tensors_sha256,
        "settings": meta.settings,
        "calibration": meta.calibration,
        **fit.held_out.as_json(),
        "scores": {kind: [round(float(s), 5) for s in part] for kind, part in scores.items()},
        "took_s": round(took_s, 1),
    }


def as_page(fit: ScreenFit) -> str:
    """The page: figures on held-out collections, plain and in disguise, and settings."""
    meta = fit.artifact.meta
    figures = {name: value for name, value in meta.calibration.items() if name != "tested"}
    parts: list[Plot | Grid] = [judgement_grid(judged(fit))]
    if fit.test is not None:
        parts += _test_parts(fit.test, meta.settings)
    parts += [
        *fit.held_out.grids(),
        Grid("Calibration", ("figure", "value"), rows(figures)),
        Grid("Settings", ("setting", "value"), rows(meta.settings)),
    ]
    subtitle = (
        f"Screen of texts on {meta.model.name} ({meta.model.layers} layers), fitted "
        f"{meta.created.isoformat()}; tensors {meta.tensors_sha256[:12]}"
    )
    return render(f"Fit of {meta.concept}", subtitle, _tiles(fit.test), parts)


def _tiles(test: ScreenFigures | None) -> list[Tile]:
    if test is None:
        return []
    recall, false = test.all_recall, test.all_false_positives
    tiles = [
        Tile(
            "Held-out unsafe texts that fire",
            _percent(recall),
            f"at least {_RECALL:.0%}",
            recall.value >= _RECALL,
        ),
        Tile("Held-out benign texts that fire", _percent(false)),
    ]
    if test.auc is not None:
        area = Tile("Area under the curve", f"{test.auc:.3f}", f"at least {_AUC}", test.auc >= _AUC)
        tiles.insert(0, area)
    return tiles


def _test_parts(test: ScreenFigures, settings: dict[str, Any]) -> list[Plot | Grid]:
    threshold = float(settings["threshold"])
    by_kind = {
        kind: np.concatenate(
            [scores for name, scores in test.scores.items() if name.startswith(kind)]
        )
        for kind in ("unsafe", "benign")
        if any(name.startswith(kind) for name in test.scores)
    }
    finite = {kind: scores[np.isfinite(scores)].tolist() for kind, scores in by_kind.items()}
    parts: list[Plot | Grid] = [
        Plot(
            "Scores: the probability that a text is unsafe",
            plots.histograms(finite, {"threshold": threshold}),
            "Texts of collections that were left out of the fit. The threshold comes from other "
            "texts, so the share of benign texts above it may differ from the requested rate.",
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
        [f"{kind}: {name}", str(share)]
        for kind, shares in (("unsafe", test.recall), ("benign", test.false_positives))
        for name, share in shares.items()
    ]
    disguises = [[name, str(a), str(b)] for name, (a, b) in test.disguises.items()]
    return [
        *parts,
        Grid("Held-out collections", ("collection", "texts that fire"), collections),
        Grid(
            "Disguises",
            ("disguise", "unsafe texts that fire", "benign texts that fire"),
            disguises,
            "The same held-out texts, hidden whole. Long ones are left out here.",
        ),
    ]


def _percent(share: Share) -> str:
    return f"{share.value:.1%}" if share.total else "-"
