"""The figures of a screen on held-out collections, plain and in disguise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifiers.calibration import auc
from classifiers.embeddings.heads import Floats
from guard.evaluation.shares import Share
from guard.fitting.screens.folds import Example

DISGUISED = 60
"""The number of unsafe and of benign examples that are disguised, evenly chosen."""


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Held-out rows and their scores, `[rows]`."""

    rows: Sequence[Example]
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
    """Figures of held-out texts or images: shares that fire, by collection and by disguise.

    `auc` is None unless there are both kinds. `scores` are those of the plots, by kind and
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


def figures_of(
    held_out: HeldOutScores, threshold: float, disguised: Mapping[str, tuple[Floats, Floats]]
) -> ScreenFigures:
    """The figures of held-out rows at `threshold`; `disguised` has scores of unsafe and of benign
    ones by disguise."""

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
    disguises = {name: (fires(both[0]), fires(both[1])) for name, both in disguised.items()}
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


def evenly(of_kind: Sequence[bool]) -> list[int]:
    """At most DISGUISED indices, evenly chosen among those that are True."""
    indices = np.flatnonzero(of_kind)
    count = min(DISGUISED, len(indices))
    places = np.unique(np.linspace(0, len(indices) - 1, count).round().astype(int))
    return [int(index) for index in indices[places]]


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
