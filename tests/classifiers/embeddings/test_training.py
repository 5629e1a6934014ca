"""Trained heads separate their classes, and calibration makes probabilities of logits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from classifiers.calibration import auc
from classifiers.embeddings import training
from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads, Floats, Kind
from classifiers.embeddings.training import Calibration, calibrated, train, train_sentence

WIDTH = 12


def examples(seed: int, benign: int, unsafe: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Two classes of points on the sphere that overlap a little."""
    rng = np.random.default_rng(seed)
    flags = np.arange(benign + unsafe) >= benign
    points = (
        rng.normal(size=(len(flags), WIDTH))
        + np.where(flags, 1.5, -1.5)[:, None] * np.eye(WIDTH)[0]
    )
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), flags


@pytest.mark.parametrize("kind", ["logistic", "kernel", "mlp", "prototype"])
@pytest.mark.parametrize("how", ["temperature", "isotonic"])
def test_a_head_learns_and_its_probabilities_hold(kind: Kind, how: Calibration) -> None:
    # margins are no log-odds: a temperature alone fits them less well
    off = 0.35 if kind == "kernel" and how == "temperature" else 0.2
    embeddings, unsafe = examples(0, 300, 60)
    head = train(kind, embeddings, unsafe, np.ones(len(unsafe)), seed=0)
    held_out, truth = examples(1, 400, 400)
    head = calibrated(head, EmbeddingHeads([head]).logits(held_out)[:, 0], truth, how)
    fresh, truth = examples(2, 2000, 2000)
    scores = EmbeddingHeads([head]).scores(fresh)[:, 0]
    assert auc(scores[truth].tolist(), scores[~truth].tolist()) > 0.93
    for low in (0.1, 0.3, 0.6, 0.8):
        bin_ = (scores >= low) & (scores < low + 0.2)
        if bin_.sum() > 100:
            assert abs(float(truth[bin_].mean()) - float(scores[bin_].mean())) < off
    again = train(kind, embeddings, unsafe, np.ones(len(unsafe)), seed=0)
    for name, values in again.parts.items():
        np.testing.assert_array_equal(values, head.parts[name])


@pytest.mark.parametrize("kind", ["logistic", "kernel"])
def test_benign_sentences_weigh_as_much_as_they_should(kind: Kind) -> None:
    """Where unsafe windows and benign sentences are the same, the odds are those of the weights."""
    place = np.repeat([0, 1, 0], [50, 100, 200])
    embeddings = np.eye(WIDTH, dtype=np.float32)[place]
    unsafe, sentence = np.arange(350) < 50, np.arange(350) >= 150
    head = train_sentence(kind, embeddings, unsafe, sentence, np.ones(350), seed=0)
    shared, benign = EmbeddingHeads([head]).logits(np.eye(WIDTH, dtype=np.float32)[:2])[:, 0]
    # half of the weight is unsafe there, two fifths are benign
    assert -0.1 < shared < (0.6 if kind == "logistic" else 4.2) and benign < -2


def test_of_too_many_embeddings_a_kernel_leaves_benign_ones_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "_MOST_KERNEL", 60)
    embeddings, unsafe = examples(0, 300, 40)
    head = train("kernel", embeddings, unsafe, np.ones(340), seed=0)
    rows = {row.tobytes() for row in embeddings[unsafe]}
    held = [row.tobytes() in rows for row in head.parts["support"]]
    assert len(held) <= 60 and any(held) and not all(held)


def test_weights_count_as_copies() -> None:
    embeddings, unsafe = examples(0, 40, 40)
    twice = np.arange(len(unsafe)) % 3 == 0
    copies = np.concatenate([np.arange(len(unsafe)), np.flatnonzero(twice)])
    weighted = train("logistic", embeddings, unsafe, np.where(twice, 2.0, 1.0), seed=0)
    # as many rows, so that the penalty weighs the same
    scale = len(copies) / len(unsafe)
    copied = train("logistic", embeddings[copies], unsafe[copies], np.ones(len(copies)), seed=0)
    first, second = weighted.parts["weight"][0], copied.parts["weight"][0]
    assert first @ second / np.linalg.norm(first) / np.linalg.norm(second) > 0.999
    assert np.linalg.norm(second) < scale * np.linalg.norm(first)


def test_an_isotonic_table_keeps_texts_apart() -> None:
    """Plain isotonic regression gives levels, within which no threshold separates texts."""
    embeddings, unsafe = examples(0, 300, 300)
    head = train("logistic", embeddings, unsafe, np.ones(len(unsafe)), seed=0)
    logits = EmbeddingHeads([head]).logits(embeddings)[:, 0]
    head = calibrated(head, logits, unsafe, "isotonic")
    probabilities = head.probabilities(np.sort(logits))
    assert len(np.unique(probabilities)) > 0.98 * len(np.unique(logits))
    assert auc(probabilities[300:].tolist(), probabilities[:300].tolist()) > 0


@pytest.mark.parametrize("flag", [True, False])
def test_one_class_alone_is_refused(flag: bool) -> None:
    embeddings, unsafe = examples(0, 20, 20)
    one = np.full_like(unsafe, flag)
    with pytest.raises(ValueError, match="unsafe and benign"):
        train("logistic", embeddings, one, np.ones(40), seed=0)
    head = train("logistic", embeddings, unsafe, np.ones(40), seed=0)
    with pytest.raises(ValueError, match="of both kinds"):
        calibrated(head, np.zeros(40, np.float32), one, "temperature")


def test_classes_that_are_apart_keep_finite_odds() -> None:
    logits = np.concatenate([np.linspace(5, 9, 40), np.linspace(-9, -5, 60)]).astype(np.float32)
    unsafe = logits > 0
    head = EmbeddingHead("logistic", {"weight": np.ones((1, 1), "f4"), "bias": np.zeros(1, "f4")})
    scores = calibrated(head, logits, unsafe, "temperature").probabilities(logits)
    assert len(np.unique(scores)) == 100 and scores.min() > 1e-6 and scores.max() < 1 - 1e-6
