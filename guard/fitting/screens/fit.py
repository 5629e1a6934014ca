"""A screen of texts: a head on a sentence encoder, its probabilities and its threshold.

The head is trained on all texts. Its probabilities and its threshold come from five heads, each of
which was trained without a fifth of the families and scores that fifth: cross-conformal prediction
(Vovk 2015, arXiv 1208.0806). Each benign collection gives a threshold, and the highest is used, so
that the rate holds on each. Held-out collections are for testing only.
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
from classifiers.text.training import Calibration, calibrated
from classifiers.text.training import train as train_head
from guard.artifact import Artifact, ArtifactMeta, FittedModel
from guard.config.schema import PLACES, Place
from guard.data.prompts import ScreenText, texts
from guard.errors import DataError
from guard.fitting.judgement import HeldOut
from guard.fitting.screens.figures import HeldOutScores, ScreenFigures, figures_of
from guard.fitting.screens.windows import Readings, TextWindows, embed_windows
from guard.reporting.progress import Stages

METHOD = "screen"
READING = "reading texts"
"""The stage in which the rows are embedded."""
_FOLDS = 5

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class ScreenRecipe:
    """Settings of a fit."""

    kind: Kind = "logistic"
    calibration: Calibration = "temperature"
    fpr: float = 0.01
    seed: int = 0
    learn_only: tuple[str, ...] = ()
    """Benign sources to learn from by which no threshold is set: texts that the screen will not
    read."""
    look: tuple[Place, ...] = PLACES
    """The places of a request and its answer that the screen is for."""


@dataclass(frozen=True, slots=True)
class ScreenFit:
    """An artifact, the figures of its held-out texts, None without such texts, and the texts by
    which it is judged: these, and all others as the head scores them that was not trained on
    them."""

    artifact: Artifact
    test: ScreenFigures | None
    held_out: HeldOut


def fit_screen(
    encoder: TextEncoder,
    rows: Sequence[ScreenText],
    concept: str,
    hold_out: Sequence[str],
    recipe: ScreenRecipe,
    readings: Readings,
    progress: Stages,
    description: str = "",
    windows: TextWindows | None = None,
) -> ScreenFit:
    """Fit a screen for `concept` on `rows`; those of the sources in `hold_out` are for testing.
    `windows` are those of the rows where they have been embedded already.

    Raises DataError if a source is unknown or there are too few rows.
    """
    folds = _folds(rows, hold_out, recipe.seed)
    unsafe = np.array([row.unsafe for row in rows])
    if windows is None:
        windows = embed_windows(encoder, texts(rows), readings, progress, READING)
    advance = progress("training heads", _FOLDS + 1)
    train = np.flatnonzero(folds >= 0)
    logits = np.full(len(rows), np.nan, np.float32)
    try:
        for fold in range(_FOLDS):
            fold_head = _trained(windows, train[folds[train] != fold], unsafe, recipe)
            logits[folds == fold] = windows.logits(fold_head)[folds == fold]
            advance(1)
        head = _trained(windows, train, unsafe, recipe)
        usable = train[np.isfinite(logits[train])]
        head = calibrated(head, logits[usable], unsafe[usable], recipe.calibration)
    except ValueError as error:
        raise DataError(f"the texts of {concept} are not sufficient: {error}") from error
    advance(1)
    scores = head.probabilities(logits)
    threshold = _threshold(rows, scores, usable, recipe)
    unsafe_scores = scores[usable[unsafe[usable]]]
    held_out = np.flatnonzero(folds < 0)
    test, judged = None, usable
    if len(held_out):

        def score(disguised: Sequence[str], stage: str) -> Floats:
            return embed_windows(encoder, disguised, readings, progress, stage).scores(head)

        test_rows = [rows[i] for i in held_out.tolist()]
        test_scores = HeldOutScores(test_rows, windows.scores(head)[held_out])
        test = figures_of(test_scores, score, threshold)
        scores[held_out] = test_scores.scores
        judged = np.concatenate([usable, held_out])
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
        settings=head.settings()
        | {"threshold": threshold, "window": WINDOW, "overlap": OVERLAP, "look": list(recipe.look)},
        calibration={
            "false_positive_rate": recipe.fpr,
            "folds": _FOLDS,
            "texts": {"unsafe": len(unsafe_scores), "benign": len(usable) - len(unsafe_scores)},
            "recall": float((unsafe_scores > threshold).mean()),
            "held_out": list(hold_out),
            "learn_only": list(recipe.learn_only),
            "tested": None if test is None else test.figures(),
        },
    )
    return ScreenFit(
        Artifact(meta, head.tensors()),
        test,
        HeldOut.of(
            threshold,
            [rows[i].prompt for i in judged],
            ["unsafe" if rows[i].unsafe else "benign" for i in judged],
            scores[judged].tolist(),
        ),
    )


def require_texts(
    rows: Sequence[ScreenText], hold_out: Sequence[str], recipe: ScreenRecipe
) -> None:
    """Raise DataError if a source is unknown, or the texts to train and to calibrate on are too
    few, whatever the encoder makes of them."""
    folds = _folds(rows, hold_out, recipe.seed)
    _require_known(rows, recipe.learn_only)
    unsafe = np.array([row.unsafe for row in rows])
    for kind, of_kind in (("unsafe", unsafe), ("benign", ~unsafe)):
        if len(np.unique(folds[of_kind & (folds >= 0)])) < 2:
            raise DataError(
                f"too few {kind} texts to train on: give some of two families or more, that are "
                "not of a source that is held out"
            )
    calibrating = np.array([row.source not in recipe.learn_only for row in rows]) & ~unsafe
    benign, needed = int((calibrating & (folds >= 0)).sum()), prompts_needed(recipe.fpr)
    if benign < needed:
        raise DataError(
            f"a false-positive rate of {recipe.fpr:.2%} needs {needed} benign texts that are not "
            f"held out, there are {benign}: add some, or ask for a higher --fpr"
        )


def _require_known(rows: Sequence[ScreenText], named: Sequence[str]) -> None:
    sources = {row.source for row in rows}
    if unknown := sorted({*named} - sources):
        raise DataError(
            f"no row is of the source {unknown[0]!r}: there are {', '.join(sorted(sources))}"
        )


def _folds(rows: Sequence[ScreenText], hold_out: Sequence[str], seed: int) -> Indices:
    """The fold of each row, -1 for held-out rows; all rows of a family are in one fold."""
    _require_known(rows, hold_out)
    families: dict[tuple[str, bool, str], list[int]] = {}
    for index, row in enumerate(rows):
        if row.source not in hold_out:
            families.setdefault((row.source, row.unsafe, row.family or f"row {index}"), []).append(
                index
            )
    generator = np.random.default_rng(seed)
    order = sorted(families, key=lambda key: (key[:2], generator.random()))
    folds = np.full(len(rows), -1, np.intp)
    for number, key in enumerate(order):
        folds[families[key]] = number % _FOLDS
    return folds


def _trained(
    windows: TextWindows, rows: Indices, unsafe: NDArray[np.bool_], recipe: ScreenRecipe
) -> TextHead:
    """A head trained on some rows; all texts weigh the same, however many windows they have."""
    chosen = windows.windows_of(rows)
    text = windows.text[chosen]
    weights = 1 / np.bincount(text)[text]
    return train_head(recipe.kind, windows.embeddings[chosen], unsafe[text], weights, recipe.seed)


def _threshold(
    rows: Sequence[ScreenText], scores: Floats, calibrating: Indices, recipe: ScreenRecipe
) -> float:
    fpr = recipe.fpr
    benign: dict[str, list[float]] = {}
    for index in calibrating:
        if not rows[index].unsafe and rows[index].source not in recipe.learn_only:
            benign.setdefault(rows[index].source, []).append(float(scores[index]))
    enough = [group for group in benign.values() if len(group) >= prompts_needed(fpr)]
    few = [score for group in benign.values() if group not in enough for score in group]
    groups = [*enough, few] if len(few) >= prompts_needed(fpr) or not enough else enough
    try:
        return max(threshold_for(group, fpr) for group in groups)
    except ValueError as error:
        raise DataError(f"benign texts to calibrate on: {error}") from error
