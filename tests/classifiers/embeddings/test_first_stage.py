"""The estimates of a first stage, and what it clears."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from classifiers.embeddings.first_stage import CUT, FirstStage, FirstStages
from classifiers.embeddings.heads import EmbeddingHead
from classifiers.embeddings.training import first_stage

WIDTH = 6
KNOWN = np.arange(30) % 3 != 0


def _unit(rows: Any) -> Any:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def _stage(seed: int, cut: float) -> FirstStage:
    rng = np.random.default_rng(seed)
    weight, mean = rng.normal(size=(2, WIDTH)).astype(np.float32)
    return FirstStage(weight, float(rng.normal()), mean / 4, KNOWN, cut)


def _head() -> EmbeddingHead:
    parts = {"weight": np.ones((1, WIDTH), np.float32), "bias": np.zeros(1, np.float32)}
    return EmbeddingHead("logistic", parts)


STATIC = _unit(np.random.default_rng(9).normal(size=(20, WIDTH)))
WINDOWS: list[list[int]] = [[1, 2, 4, 5]] * 20


def test_estimates_are_those_of_the_formula() -> None:
    stages = [_stage(0, 0.0), None, _stage(1, 0.0)]
    estimates = FirstStages(stages, [_head(), None, _head()], [0.5] * 3).estimates(STATIC, WINDOWS)
    for column in (0, 2):
        stage = stages[column]
        assert stage is not None
        expected = _unit(STATIC - stage.mean) @ stage.weight + stage.bias
        np.testing.assert_allclose(estimates[:, column], expected, atol=1e-5)


def test_a_text_is_clear_for_all_heads_or_for_none() -> None:
    stages = [_stage(0, 0.0), _stage(1, 0.0)]
    estimates = FirstStages(stages, [_head()] * 2, [0.5, 0.5]).estimates(STATIC, WINDOWS)
    cuts = np.median(estimates, axis=0).tolist()
    stages = [_stage(seed, cut) for seed, cut in enumerate(cuts)]
    first = FirstStages(stages, [_head()] * 2, [0.5, 0.5])
    alone = [first.cleared(estimates, (head,)) for head in (0, 1)]
    np.testing.assert_array_equal(alone[0], estimates[:, 0] < np.float32(cuts[0]))
    np.testing.assert_array_equal(first.cleared(estimates, (0, 1)), alone[0] & alone[1])
    assert 0 < (alone[0] & alone[1]).sum() < min(alone[0].sum(), alone[1].sum())


def test_a_head_without_a_first_stage_is_never_cleared() -> None:
    first = FirstStages([_stage(0, 1e9), None], [_head(), None], [0.5, 0.5])
    estimates = first.estimates(STATIC, WINDOWS)
    assert first.cleared(estimates, (0,)).all() and not first.cleared(estimates, (0, 1)).any()


def test_no_estimate_fires() -> None:
    first = FirstStages([_stage(0, 1e9)], [_head()], [0.1])
    scores = first.scores(first.estimates(STATIC, WINDOWS))
    assert scores.max() == np.float32(0.1) and scores.min() < 0.1


def test_it_is_kept_beside_the_head() -> None:
    head, stage = _head(), _stage(0, -1.5)
    tensors, settings = head.tensors() | stage.tensors(), head.settings() | stage.settings()
    again = FirstStage.of(tensors, settings)
    assert again is not None and again.cut == -1.5
    assert again.known[:30].tolist() == KNOWN.tolist() and not again.known[30:].any()
    np.testing.assert_array_equal(again.weight, stage.weight)
    assert EmbeddingHead.from_tensors(tensors, settings).parts.keys() == head.parts.keys()
    assert FirstStage.of(head.tensors(), head.settings()) is None


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({}, {}, "the number first_stage_cut"),
        ({}, {CUT: True}, "the number first_stage_cut"),
        ({"first_mean": np.zeros(2, np.float32)}, {CUT: 0.0}, "must be .width."),
        ({"first_known": np.full(2, 0.5, np.float32)}, {CUT: 0.0}, "whole numbers"),
        ({"first_known": np.full(2, 2.0**24, np.float32)}, {CUT: 0.0}, "of 24 bits"),
        ({"first_weight": np.full(WIDTH, np.nan, np.float32)}, {CUT: 0.0}, "not finite"),
    ],
)
def test_a_broken_one_is_refused(
    change: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FirstStage.of(_stage(0, 0.0).tensors() | change, settings)


def test_a_part_of_one_is_refused() -> None:
    tensors = _stage(0, 0.0).tensors()
    del tensors["first_bias"]
    with pytest.raises(ValueError, match="fit it again"):
        FirstStage.of(tensors, {CUT: 0.0})


def test_a_fitted_one_follows_the_heads_logits() -> None:
    rng = np.random.default_rng(3)
    static = _unit(rng.normal(size=(400, WIDTH)))
    logits = (static @ np.arange(WIDTH) * 3).astype(np.float32)
    unsafe = logits > 4
    stage = first_stage(static[:300], logits[:300], unsafe[:300], np.ones(300), KNOWN)
    estimates = FirstStages([stage], [None], [1.0]).estimates(static[300:], [[]] * 100)[:, 0]
    assert np.corrcoef(estimates, logits[300:])[0, 1] > 0.97


def test_nothing_is_clear_where_many_words_are_unknown() -> None:
    first = FirstStages([_stage(0, 1e9)], [_head()], [0.5])
    windows = [[1, 2, 4, 3], [1, 2, 3, 6], [], [29]]
    estimates = first.estimates(STATIC[:4], windows)
    assert first.cleared(estimates, (0,)).tolist() == [True, False, True, True]
