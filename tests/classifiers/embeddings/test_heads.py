"""Text heads compute their equations, one by one or stacked, and keep order in calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads, Floats, Kind

WIDTH = 6
TABLE = np.array([[-3, 0, 1], [0.0, 0.2, 1]], np.float32)


def head(kind: Kind, seed: int, **fields: Any) -> EmbeddingHead:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Floats:
        return rng.normal(size=shape).astype(np.float32)

    parts: dict[Kind, dict[str, Floats]] = {
        "logistic": {"weight": normal(1, WIDTH), "bias": normal(1)},
        "kernel": {"support": normal(7, WIDTH), "out": normal(7), "bias": normal(1)},
        "mlp": {
            "hidden": normal(5, WIDTH),
            "hidden_bias": normal(5),
            "out": normal(5),
            "bias": normal(1),
        },
        "prototype": {"unsafe": normal(3, WIDTH), "benign": normal(4, WIDTH)},
    }
    return EmbeddingHead(kind, parts[kind], **fields)


def reference_logit(head: EmbeddingHead, e: NDArray[np.float64]) -> float:
    """The equations of the module, one embedding at a time."""
    part = {name: values.astype(np.float64) for name, values in head.parts.items()}
    if head.kind == "logistic":
        return float((part["weight"][0] * e).sum() + part["bias"][0])
    if head.kind == "kernel":
        near = [np.exp(head.sharpness * (float(x @ e) - 1)) for x in part["support"]]
        return float(sum(a * k for a, k in zip(part["out"], near, strict=True)) + part["bias"][0])
    if head.kind == "mlp":
        rows = zip(part["hidden"], part["hidden_bias"], strict=True)
        inner = [max(0.0, float(w @ e + c)) for w, c in rows]
        return float(sum(v * x for v, x in zip(part["out"], inner, strict=True)) + part["bias"][0])
    near, far = (
        np.log(sum(np.exp(head.sharpness * float(p @ e)) for p in part[name]))
        for name in ("unsafe", "benign")
    )
    return float(near - far)


def all_kinds() -> list[EmbeddingHead]:
    return [
        head("mlp", 0, temperature=2.5),
        head("prototype", 1, sharpness=3.0, table=TABLE),
        head("logistic", 2),
        head("mlp", 3, table=TABLE),
        head("kernel", 4, sharpness=2.0),
    ]


@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_stacked_heads_score_as_each_by_its_equation(seed: int, rows: int) -> None:
    embeddings = np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)
    heads = all_kinds()
    scores = EmbeddingHeads(heads).scores(embeddings)
    assert scores.shape == (rows, len(heads)) and scores.dtype == np.float32
    for column, text_head in enumerate(heads):
        logits = np.array([reference_logit(text_head, e) for e in embeddings.astype(np.float64)])
        if text_head.table is None:
            expected = 1 / (1 + np.exp(-logits / text_head.temperature))
        else:
            expected = np.interp(logits, *text_head.table)
        np.testing.assert_allclose(scores[:, column], expected, atol=1e-4)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=20, unique=True))
def test_calibration_changes_no_order(values: list[float]) -> None:
    logits = np.sort(np.array(values, np.float32))
    for text_head in all_kinds():
        assert (np.diff(text_head.probabilities(logits)) >= 0).all()
        assert (text_head.probabilities(logits) >= 0).all() and (
            text_head.probabilities(logits) <= 1
        ).all()


def test_a_stored_head_gives_the_same_scores() -> None:
    embeddings = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)
    for text_head in all_kinds():
        stored = EmbeddingHead.from_tensors(
            text_head.tensors(), text_head.settings() | {"threshold": 0.3}
        )
        scores = [EmbeddingHeads([copy]).scores(embeddings) for copy in (text_head, stored)]
        np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        ({}, {"kind": "tree"}, "not 'tree'"),
        ({}, {"calibration": "guess"}, "not 'guess'"),
        ({"bias": None}, {}, "holds bias, weight, not weight"),
        ({"more": np.zeros(1)}, {}, "not bias, more, weight"),
        ({"bias": np.zeros(2)}, {}, "bias of a logistic head must be"),
        ({"weight": np.zeros((2, 3))}, {}, r"must be \(1, 3\)"),
        ({"weight": np.zeros(3)}, {}, r"must be \[rows, width\]"),
        ({"bias": np.array([np.nan])}, {}, "not finite"),
        ({}, {"temperature": 0}, "above zero"),
        ({}, {"temperature": "hot"}, "must be a number"),
    ],
)
def test_parts_that_make_no_head_are_refused(
    tensors: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    valid = head("logistic", 0)
    changed = {n: v for n, v in (valid.tensors() | tensors).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        EmbeddingHead.from_tensors(changed, valid.settings() | settings)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[0, 0, 1], [0, 0.5, 1]], "must rise"),
        ([[0, 1, 2], [0, 0.5, 0.5]], "must rise"),
        ([[0, 1], [0, 2]], "between 0 and 1"),
        ([[0], [0]], "two finite points"),
        ([[0, np.inf], [0, 1]], "two finite points"),
    ],
)
def test_a_table_that_does_not_rise_is_refused(table: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head("logistic", 0, table=np.array(table, np.float32))


def test_heads_of_unlike_widths_are_not_stacked() -> None:
    narrow = EmbeddingHead("logistic", {"weight": np.ones((1, 2), "f4"), "bias": np.zeros(1, "f4")})
    with pytest.raises(ValueError, match=r"not \[2, 6\]"):
        EmbeddingHeads([narrow, head("logistic", 0)])
    with pytest.raises(ValueError, match=r"must be \[n, 2\]"):
        EmbeddingHeads([narrow]).scores(np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("kind", ["logistic", "kernel"])
def test_sentences_are_read_by_a_head_of_their_own(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    own = head(kind, 5, sharpness=3.0)
    reading, plain = head("mlp", 1, sentence=own), head("logistic", 2)
    heads = EmbeddingHeads([reading, plain])
    embeddings = rng.normal(size=(4, WIDTH)).astype(np.float32)
    sentence = np.array([False, True, False, True])
    logits, whole = heads.logits(embeddings, sentence), heads.logits(embeddings)
    np.testing.assert_array_equal(logits[~sentence], whole[~sentence])
    expected = [reference_logit(own, e.astype(np.float64)) for e in embeddings[sentence]]
    np.testing.assert_allclose(logits[sentence, 0], expected, rtol=1e-5)
    assert heads.reads_sentences and (heads.scores(embeddings, sentence)[sentence, 1] == 0).all()
    assert not EmbeddingHeads([plain]).reads_sentences


@pytest.mark.parametrize("table", [None, TABLE])
@pytest.mark.parametrize("kind", ["logistic", "kernel"])
def test_a_stored_head_reads_sentences_as_before(kind: Kind, table: Floats | None) -> None:
    sentence = head(kind, 5, sharpness=3.0)
    stored = head("kernel", 3, table=table, sharpness=2.0, sentence=sentence)
    again = EmbeddingHead.from_tensors(stored.tensors(), stored.settings())
    assert again.sentence is not None
    embeddings = np.random.default_rng(0).normal(size=(6, WIDTH)).astype(np.float32)
    marked = np.array([True, False, True, False, True, True])
    first, second = (EmbeddingHeads([one]).scores(embeddings, marked) for one in (again, stored))
    np.testing.assert_array_equal(first, second)


def test_an_older_artifact_has_a_direction_for_sentences_or_none() -> None:
    stored = head("prototype", 3)
    direction = np.linspace(-1, 1, WIDTH + 1, dtype=np.float32)
    tensors = {**stored.tensors(), "sentence": direction}
    again = EmbeddingHead.from_tensors(tensors, stored.settings())
    assert again.sentence is not None
    np.testing.assert_array_equal(again.tensors()["sentence"], direction)
    assert EmbeddingHead.from_tensors(stored.tensors(), stored.settings()).sentence is None


def test_a_bias_that_is_added_moves_every_logit() -> None:
    embeddings = np.random.default_rng(0).normal(size=(6, WIDTH)).astype(np.float32)
    for one in (head("kernel", 1), head("logistic", 2)):
        before, after = (EmbeddingHeads([h]).logits(embeddings) for h in (one, one.with_bias(0.5)))
        np.testing.assert_allclose(after, before + 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sentence": np.zeros(WIDTH)}, "sentence must be for embeddings of width"),
        ({"sentence": np.full(WIDTH + 1, np.nan)}, "not finite"),
        ({"sentence": np.zeros((2, 2))}, r"sentence must be \[width \+ 1\]"),
        ({"sentence_support": np.zeros((2, WIDTH))}, "no sentence_kind"),
    ],
)
def test_a_stored_head_for_sentences_that_does_not_fit_is_refused(
    changed: dict[str, Floats], message: str
) -> None:
    stored = head("logistic", 0)
    tensors = {**stored.tensors(), **{k: v.astype(np.float32) for k, v in changed.items()}}
    with pytest.raises(ValueError, match=message):
        EmbeddingHead.from_tensors(tensors, stored.settings())


def test_a_kernel_for_sentences_needs_all_its_tensors() -> None:
    stored = head("logistic", 0, sentence=head("kernel", 1))
    tensors = stored.tensors()
    del tensors["sentence_out"]
    with pytest.raises(ValueError, match="holds sentence_support, sentence_out, sentence_bias"):
        EmbeddingHead.from_tensors(tensors, stored.settings())
