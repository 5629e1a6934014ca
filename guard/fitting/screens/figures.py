"""The figures of a screen on held-out collections, plain and in disguise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifiers.calibration import auc
from classifiers.embeddings.heads import Floats
from guard.data.prompts import ScreenText
from guard.evaluation.shares import Share
from guard.evaluation.text_disguises import TEXT_DISGUISES

DISGUISED = 60
"""The number of unsafe and of benign texts that are disguised, evenly chosen."""

_LONGEST_DISGUISED = 2000

Score = Callable[[Sequence[str], str], Floats]
"""Scores of texts; the second argument names the stage of the progress report."""


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Held-out rows and their scores, `[rows]`."""

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

    `auc` is None unless there are both kinds of text. `scores` are those of the plots, by kind and
    collection.
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
        """The figures as JSON, each share with its 95 % Wilson interval."""
        return {
            "auc": self.auc,
            "recall": _share_figures({"all": self.all_recall, **self.recall}),
            "false_positives": _share_figures(
                {"all": self.all_false_positives, **self.false_positives}
            ),
            "disguised_recall": _share_figures({n: both[0] for n, both in self.disguises.items()}),
            "disguised_false_positives": _share_figures(
                {n: both[1] for n, both in self.disguises.items()}
            ),
        }


def figures_of(held_out: HeldOutScores, score: Score, threshold: float) -> ScreenFigures:
    """The figures of held-out rows at `threshold`; `score` scores the disguised texts."""

    def fires(scores: Floats) -> Share:
        return Share.of((scores > threshold).tolist())

    shares = [
        {
            source: fires(held_out.of(unsafe=unsafe, source=source))
            for source in held_out.sources(unsafe=unsafe)
        }
        for unsafe in (True, False)
    ]
    unsafe, benign = held_out.of(unsafe=True), held_out.of(unsafe=False)
    samples = [_evenly(held_out, unsafe=kind) for kind in (True, False)]
    disguises = {}
    for name, hide in TEXT_DISGUISES.items():
        both = [
            fires(score([hide(text) for text in texts], f"in {name}")) if texts else Share(0, 0)
            for texts in samples
        ]
        disguises[name] = (both[0], both[1])
    area = auc(unsafe.tolist(), benign.tolist())
    return ScreenFigures(
        auc=None if np.isnan(area) else area,
        recall=shares[0],
        false_positives=shares[1],
        disguises=disguises,
        scores={
            f"{kind}: {source}": held_out.of(unsafe=kind == "unsafe", source=source)
            for kind in ("unsafe", "benign")
            for source in held_out.sources(unsafe=kind == "unsafe")
        },
    )


def _evenly(held_out: HeldOutScores, *, unsafe: bool) -> list[str]:
    texts = [row.prompt for row in held_out.rows if row.unsafe == unsafe]
    texts = [text for text in texts if len(text) <= _LONGEST_DISGUISED]
    indices = np.unique(
        np.linspace(0, len(texts) - 1, min(DISGUISED, len(texts))).round().astype(int)
    )
    return [texts[i] for i in indices]


def _sum(shares: dict[str, Share]) -> Share:
    parts = shares.values()
    return Share(sum(share.count for share in parts), sum(share.total for share in parts))


def _share_figures(shares: dict[str, Share]) -> dict[str, Any]:
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
