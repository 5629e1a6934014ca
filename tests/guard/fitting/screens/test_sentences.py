"""The threshold of single sentences, on embeddings of two numbers of which one tells them apart."""

from __future__ import annotations

import numpy as np
import pytest

from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads, Floats, Kind
from guard.data.prompts import ScreenText
from guard.fitting.screens.cross_fit import CrossFit, HeadRecipe
from guard.fitting.screens.folds import folds_of
from guard.fitting.screens.sentences import RATE, SentenceFit, fit_sentences
from guard.fitting.screens.windows import TextWindows

BENIGN, UNSAFE, TOKENS = 1500, 200, 10
FPR = 0.02


def embeddings(rng: np.random.Generator, benign: int, unsafe: int) -> Floats:
    """Rows of length one, the benign ones first."""
    angles = rng.normal(np.repeat([-0.4, 0.6], [benign, unsafe]), 0.25)
    return np.stack([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def fitted(
    tokens: int = TOKENS, sentences_of_first: int = 0, kind: Kind = "logistic"
) -> tuple[SentenceFit, CrossFit]:
    """`sentences_of_first` unsafe sentences stand in benign texts, one in each."""
    rng = np.random.default_rng(0)
    rows = [
        ScreenText(text=str(at), unsafe=at >= BENIGN, source="bad" if at >= BENIGN else "good")
        for at in range(BENIGN + UNSAFE)
    ]
    embedded = embeddings(rng, BENIGN, UNSAFE)
    count, more = len(rows), sentences_of_first
    text = np.concatenate([np.arange(count), np.arange(more)])
    order = np.argsort(text, kind="stable")
    windows = TextWindows(
        np.concatenate([embedded, embedded[-more:] if more else embedded[:0]])[order],
        np.zeros((count + more, 2), np.float32),
        [[0] * tokens] * (count + more),
        1,
        text[order],
        np.ones(count + more, bool),
        (np.arange(count + more) >= count)[order],
        np.zeros(count, bool),
    )
    parts = {"weight": np.array([[8, 0]], np.float32), "bias": np.zeros(1, np.float32)}
    logits = 8 * embedded[:, 0]
    cross = CrossFit(
        EmbeddingHead("logistic", parts), 0.9, 2.2, logits, logits, np.arange(count), ()
    )
    folds = folds_of(rows, (), 0)
    return fit_sentences(rows, windows, folds, cross, HeadRecipe(kind, fpr=FPR), ()), cross


def logits_of(head: EmbeddingHead, rows: Floats) -> Floats:
    return EmbeddingHeads([head]).logits(rows)[:, 0]


@pytest.mark.parametrize("kind", ["logistic", "kernel"])
def test_benign_texts_put_together_fire_at_the_rate(kind: Kind) -> None:
    fit, cross = fitted(kind=kind)
    assert fit.sentence is not None
    rng = np.random.default_rng(1)
    rates = []
    for parts in (4, 15, 40):
        logits = logits_of(fit.sentence, embeddings(rng, 4000 * parts, 0))
        rates.append((logits.reshape(4000, parts).max(1) > cross.border).mean())
    assert 0.3 * RATE * FPR < np.mean(rates) < 1.5 * RATE * FPR
    unsafe = logits_of(fit.sentence, embeddings(rng, 0, 1000))
    assert (unsafe > cross.border).mean() > 0.3


def test_texts_with_a_sentence_that_scores_high_raise_the_threshold() -> None:
    plain, more = fitted()[0], fitted(sentences_of_first=120)[0]
    unsafe = embeddings(np.random.default_rng(1), 0, 1000)
    fire = [
        (logits_of(fit.sentence, unsafe) > fitted()[1].border).mean()
        for fit in (plain, more)
        if fit.sentence is not None
    ]
    assert fire[1] < fire[0]
    assert (more.logits > fitted()[1].border).sum() <= FPR * 120


def test_without_short_benign_texts_sentences_are_not_read() -> None:
    fit, _ = fitted(tokens=500)
    assert fit.sentence is None and np.isneginf(fit.logits).all()
    assert fit.figures == {"joined_texts": 0}
