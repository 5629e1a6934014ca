"""What a screen does on collections that were held out, plain and in disguise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifiers.calibration import auc
from classifiers.text.heads import Floats
from guard.data.prompts import ScreenText
from guard.evaluation.shares import Share
from guard.evaluation.text_disguises import TEXT_DISGUISES

DISGUISED = 60
"""So many unsafe and so many benign texts are disguised, evenly chosen."""

_LONGEST_DISGUISED = 2000

Score = Callable[[Sequence[str], str], Floats]
"""Scores of texts, and what to call the stage."""


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Held-out rows and their scores."""

    rows: Sequence[ScreenText]
    scores: Floats

    def of(self, *, unsafe: bool, source: str | None = None) -> Floats:
        return np.array(
            [
                score
                for row, score in zip(self.rows, self.scores, strict=True)
                if row.unsafe == unsafe and source in {None, row.source}
            ],
            np.float32,
        )

    def sources(self, *, unsafe: bool) -> list[str]:
        return list(dict.fromkeys(row.source for row in self.rows if row.unsafe == unsafe))


@dataclass(frozen=True, slots=True)
class ScreenFigures:
    """Figures of held-out texts: shares that fire, by collection and by disguise.

    `auc` is None without both kinds. `scores` are those behind the plots, by kind and collection.
    """

    auc: float | None
    recall: dict[str, Share]
    false_positives: dict[str, Share]
    disguises: dict[str, tuple[Share, Share]]
    scores: dict[str, Floats]

    @property
    def all_recall(self) -> Share:
        return _sum(self.recall)

    @property
    def all_false_positives(self) -> Share:
        return _sum(self.false_positives)

    def figures(self) -> dict[str, Any]:
        """JSON, each share with its 95 % Wilson interval."""
        return {
            "auc": self.auc,
            "recall": _told({"all": self.all_recall, **self.recall}),
            "false_positives": _told({"all": self.all_false_positives, **self.false_positives}),
            "disguised_recall": _told({n: both[0] for n, both in self.disguises.items()}),
            "disguised_false_positives": _told({n: both[1] for n, both in self.disguises.items()}),
        }


def test(held: HeldOutScores, score: Score, threshold: float) -> ScreenFigures:
    """Figures of the held-out rows at `threshold`; `score` scores their disguises."""

    def fires(scores: Floats) -> Share:
        return Share.of((scores > threshold).tolist())

    shares = [
        {
            source: fires(held.of(unsafe=unsafe, source=source))
            for source in held.sources(unsafe=unsafe)
        }
        for unsafe in (True, False)
    ]
    unsafe, benign = held.of(unsafe=True), held.of(unsafe=False)
    chosen = [_evenly(held, unsafe=kind) for kind in (True, False)]
    disguises = {}
    for name, hide in TEXT_DISGUISES.items():
        both = [
            fires(score([hide(t) for t in own], f"in {name}")) if own else Share(0, 0)
            for own in chosen
        ]
        disguises[name] = (both[0], both[1])
    area = auc(unsafe.tolist(), benign.tolist())
    return ScreenFigures(
        auc=None if np.isnan(area) else area,
        recall=shares[0],
        false_positives=shares[1],
        disguises=disguises,
        scores={
            f"{kind}: {source}": held.of(unsafe=kind == "unsafe", source=source)
            for kind in ("unsafe", "benign")
            for source in held.sources(unsafe=kind == "unsafe")
        },
    )


def _evenly(held: HeldOutScores, *, unsafe: bool) -> list[str]:
    own = [row.prompt for row in held.rows if row.unsafe == unsafe]
    own = [text for text in own if len(text) <= _LONGEST_DISGUISED]
    at = np.unique(np.linspace(0, len(own) - 1, min(DISGUISED, len(own))).round().astype(int))
    return [own[i] for i in at]


def _sum(shares: dict[str, Share]) -> Share:
    own = shares.values()
    return Share(sum(share.count for share in own), sum(share.total for share in own))


def _told(shares: dict[str, Share]) -> dict[str, Any]:
    return {
        name: {
            "value": share.value,
            "count": share.count,
            "total": share.total,
            "interval": list(share.interval),
        }
        for name, share in shares.items()
        if share.total
    }
