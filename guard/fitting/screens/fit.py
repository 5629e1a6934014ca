"""A screen of texts: a head on a sentence encoder, its probabilities and its threshold.

The head is trained on all texts. Its probabilities and its threshold come from five heads, each of
which was trained without a fifth of the families and scores that fifth: cross-conformal prediction
(Vovk 2015, arXiv 1208.0806). Each benign collection gives a threshold, and the highest is used, so
that the rate holds on each. Held-out collections are for testing only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
from numpy.typing import NDArray

from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads, Floats
from classifiers.embeddings.training import train as train_head
from classifiers.text.encoder.model import OVERLAP, WINDOW, TextEncoder
from guard.artifact import Artifact, ArtifactMeta, FittedModel
from guard.config.policy_schema import PLACES, Place
from guard.data.prompts import ScreenText, texts
from guard.errors import DataError
from guard.evaluation.text_disguises import TEXT_DISGUISES
from guard.fitting.judgement import HeldOut
from guard.fitting.screens.cross_fit import CrossFit, HeadRecipe, cross_fit
from guard.fitting.screens.figures import HeldOutScores, ScreenFigures, evenly, figures_of
from guard.fitting.screens.first_stage import fit_first_stage
from guard.fitting.screens.folds import (
    FOLDS,
    Indices,
    folds_of,
    require_enough,
)
from guard.fitting.screens.sentences import fit_sentences
from guard.fitting.screens.windows import Readings, TextWindows, embed_windows
from guard.reporting.progress import Stages

METHOD = "screen"
_LONGEST_DISGUISED = 2000
READING = "reading texts"
"""The stage in which the rows are embedded."""


@dataclass(frozen=True, slots=True)
class ScreenRecipe(HeadRecipe):
    """Settings of a fit."""

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
    folds = folds_of(rows, hold_out, recipe.seed)
    unsafe = np.array([row.unsafe for row in rows])
    if windows is None:
        windows = embed_windows(encoder, texts(rows), readings, progress, READING)
    try:
        fitted = cross_fit(
            rows,
            folds,
            lambda chosen: _trained(windows, chosen, unsafe, recipe),
            windows.logits,
            recipe.calibration,
            recipe.fpr,
            progress("training heads", FOLDS + 1),
            recipe.learn_only,
        )
    except ValueError as error:
        raise DataError(f"the texts of {concept} are not sufficient: {error}") from error
    sentences = fit_sentences(rows, windows, folds, fitted, recipe, recipe.learn_only)
    head = replace(fitted.head, sentence=sentences.sentence)
    threshold, usable = fitted.threshold, fitted.usable
    logits = np.where(windows.sentence, sentences.logits, _unlearnt(windows, folds, fitted))
    scores = head.probabilities(windows.highest(logits))
    unsafe_scores = scores[usable[unsafe[usable]]]
    held_out = np.flatnonzero(folds < 0)
    test, judged = None, usable
    if len(held_out):

        def score(disguised: Sequence[str], stage: str) -> Floats:
            return embed_windows(encoder, disguised, readings, progress, stage).scores(head)

        test_rows = [rows[i] for i in held_out.tolist()]
        test_scores = HeldOutScores(test_rows, windows.scores(head)[held_out])
        test = figures_of(test_scores, threshold, _disguised(test_rows, score))
        scores[held_out] = test_scores.scores
        judged = np.concatenate([usable, held_out])
    first = fit_first_stage(rows, windows, folds, head, threshold, logits)
    stage = first.stage
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
        | ({} if stage is None else stage.settings())
        | {"threshold": threshold, "window": WINDOW, "overlap": OVERLAP, "look": list(recipe.look)},
        calibration={
            "false_positive_rate": recipe.fpr,
            "folds": FOLDS,
            "texts": {"unsafe": len(unsafe_scores), "benign": len(usable) - len(unsafe_scores)},
            "recall": float((unsafe_scores > threshold).mean()),
            "held_out": list(hold_out),
            "learn_only": list(recipe.learn_only),
            "sentences": dict(sentences.figures),
            "first_stage": dict(first.figures),
            "tested": None if test is None else test.figures(),
        },
    )
    return ScreenFit(
        Artifact(meta, head.tensors() | ({} if stage is None else stage.tensors())),
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
    folds = folds_of(rows, hold_out, recipe.seed)
    require_enough(rows, folds, recipe.fpr, "texts", recipe.learn_only)


def _trained(
    windows: TextWindows, rows: Indices, unsafe: NDArray[np.bool_], recipe: ScreenRecipe
) -> EmbeddingHead:
    """A head trained on some rows; all texts weigh the same, however many windows they have."""
    chosen = windows.windows_of(rows)
    text = windows.text[chosen]
    weights = 1 / np.bincount(text)[text]
    return train_head(recipe.kind, windows.embeddings[chosen], unsafe[text], weights, recipe.seed)


def _unlearnt(windows: TextWindows, folds: Indices, fitted: CrossFit) -> Floats:
    """The logits of windows `[windows]`, by heads that have not learnt from their texts."""
    logits, fold_of = np.empty(len(windows.text), np.float32), folds[windows.text]
    for fold, head in ((-1, fitted.head), *enumerate(fitted.of_folds)):
        rows = fold_of == fold
        logits[rows] = EmbeddingHeads([head]).logits(windows.embeddings[rows])[:, 0]
    return logits


def _disguised(
    rows: Sequence[ScreenText], score: Callable[[Sequence[str], str], Floats]
) -> dict[str, tuple[Floats, Floats]]:
    """The scores of some unsafe and some benign rows, by the disguise that they are in."""
    short = [row for row in rows if len(row.prompt) <= _LONGEST_DISGUISED]
    samples = [
        [short[i].prompt for i in evenly([row.unsafe == kind for row in short])]
        for kind in (True, False)
    ]
    disguised = {}
    for name, hide in TEXT_DISGUISES.items():
        both = [
            score([hide(text) for text in texts], f"in {name}")
            if texts
            else np.zeros(0, np.float32)
            for texts in samples
        ]
        disguised[name] = both[0], both[1]
    return disguised
