"""A screen of texts: a head on a sentence encoder, its probabilities and its threshold.

The head is taught by all texts. Its probabilities and its threshold come from heads that were each
taught without a fifth of the families, and scored that fifth: cross-conformal prediction (Vovk
2015, arXiv 1208.0806). Each benign collection gives a threshold, and the highest is taken, so that
the rate holds on each. Held-out collections only test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
from numpy.typing import NDArray

from classifiers.calibration import prompts_needed, threshold_for
from classifiers.text.encoder.model import OVERLAP, WINDOW, TextEncoder
from classifiers.text.heads import Floats, Kind, TextHead
from classifiers.text.training import Calibration, calibrated, train
from guard.artifact import Artifact, ArtifactMeta, FittedModel
from guard.data.prompts import ScreenText, texts
from guard.errors import DataError
from guard.fitting.screens.figures import HeldOutScores, ScreenFigures, test
from guard.fitting.screens.windows import Readings, TextWindows, see
from guard.reporting.progress import Stages

METHOD = "screen"
_FOLDS = 5

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class ScreenRecipe:
    """How a screen is fitted."""

    kind: Kind = "logistic"
    calibration: Calibration = "temperature"
    fpr: float = 0.01
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ScreenFit:
    """An artifact and what was found on texts that no fit has seen; None without any."""

    artifact: Artifact
    tested: ScreenFigures | None


def fit_screen(
    encoder: TextEncoder,
    rows: Sequence[ScreenText],
    concept: str,
    hold_out: Sequence[str],
    recipe: ScreenRecipe,
    readings: Readings,
    progress: Stages,
    description: str = "",
) -> ScreenFit:
    """Fit a screen for `concept` on `rows`, of which the sources in `hold_out` only test.

    Raises DataError where a source is unknown, or where the rows are too few.
    """
    fold = _folds(rows, hold_out, recipe.seed)
    unsafe = np.array([row.unsafe for row in rows])
    seen = see(encoder, texts(rows), readings, progress, "reading texts")
    advance = progress("teaching heads", _FOLDS + 1)
    learned = np.flatnonzero(fold >= 0)
    logits = np.full(len(rows), np.nan, np.float32)
    try:
        for own in range(_FOLDS):
            part = _taught(seen, learned[fold[learned] != own], unsafe, recipe)
            logits[fold == own] = seen.logits(part)[fold == own]
            advance(1)
        head = _taught(seen, learned, unsafe, recipe)
        usable = learned[np.isfinite(logits[learned])]
        head = calibrated(head, logits[usable], unsafe[usable], recipe.calibration)
    except ValueError as error:
        raise DataError(f"the texts of {concept} do not do: {error}") from error
    advance(1)
    apart = head.probabilities(logits)
    threshold = _threshold(rows, apart, usable, recipe.fpr)
    own_unsafe = apart[usable[unsafe[usable]]]
    held_out = np.flatnonzero(fold < 0)
    tested = None
    if len(held_out):
        held = HeldOutScores([rows[at] for at in held_out.tolist()], seen.scores(head)[held_out])
        tested = test(
            held,
            lambda given, what: see(encoder, given, readings, progress, what).scores(head),
            threshold,
        )
    card = encoder.card
    meta = ArtifactMeta(
        method=METHOD,
        concept=concept,
        description=description,
        created=date.today(),
        model=FittedModel(
            name=card.name,
            architecture=f"bert-{card.precision}",
            fingerprint=card.fingerprint,
            layers=card.layers,
            width=card.width,
        ),
        seams=("text",),
        settings=head.settings() | {"threshold": threshold, "window": WINDOW, "overlap": OVERLAP},
        calibration={
            "false_positive_rate": recipe.fpr,
            "folds": _FOLDS,
            "texts": {"unsafe": len(own_unsafe), "benign": len(usable) - len(own_unsafe)},
            "recall": float((own_unsafe > threshold).mean()),
            "held_out": list(hold_out),
            "tested": None if tested is None else tested.figures(),
        },
    )
    return ScreenFit(Artifact(meta, head.tensors()), tested)


def _folds(rows: Sequence[ScreenText], hold_out: Sequence[str], seed: int) -> Indices:
    """The fold of each row, -1 for those held out; a family lies in one fold."""
    sources = {row.source for row in rows}
    if unknown := sorted({*hold_out} - sources):
        raise DataError(
            f"no row is of the source {unknown[0]!r}: there are {', '.join(sorted(sources))}"
        )
    families: dict[tuple[str, bool, str], list[int]] = {}
    for at, row in enumerate(rows):
        if row.source not in hold_out:
            families.setdefault((row.source, row.unsafe, row.family or f"row {at}"), []).append(at)
    draw = np.random.default_rng(seed)
    order = sorted(families, key=lambda key: (key[:2], draw.random()))
    folds = np.full(len(rows), -1, np.intp)
    for turn, key in enumerate(order):
        folds[families[key]] = turn % _FOLDS
    return folds


def _taught(
    seen: TextWindows, own: Indices, unsafe: NDArray[np.bool_], recipe: ScreenRecipe
) -> TextHead:
    """A text of many windows weighs as much as one of few."""
    windows = seen.windows_of(own)
    text = seen.text[windows]
    weights = 1 / np.bincount(text)[text]
    return train(recipe.kind, seen.embeddings[windows], unsafe[text], weights, recipe.seed)


def _threshold(
    rows: Sequence[ScreenText], scores: Floats, calibrating: Indices, fpr: float
) -> float:
    benign: dict[str, list[float]] = {}
    for at in calibrating:
        if not rows[at].unsafe:
            benign.setdefault(rows[at].source, []).append(float(scores[at]))
    enough = [own for own in benign.values() if len(own) >= prompts_needed(fpr)]
    few = [score for own in benign.values() if own not in enough for score in own]
    groups = [*enough, few] if len(few) >= prompts_needed(fpr) or not enough else enough
    try:
        return max(threshold_for(own, fpr) for own in groups)
    except ValueError as error:
        raise DataError(f"benign texts to calibrate on: {error}") from error
