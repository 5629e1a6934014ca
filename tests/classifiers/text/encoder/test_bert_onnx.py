"""The ONNX graph computes the embeddings of the BERT paper, padded or not."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from classifiers.text.encoder.bert_onnx import BertShape, to_onnx
from tests.classifiers.text import tiny_bert

SHAPE = BertShape.from_config(tiny_bert.CONFIG)
ROWS = ([2, 5, 9, 7, 3], [2, 3], [2, 11, 12, 13, 14, 15, 16, 17, 3])


def run(rows: tuple[list[int], ...], *, padded: bool, layers: int = 3) -> NDArray[np.float32]:
    shape = BertShape(layers, SHAPE.heads, SHAPE.epsilon)
    model = to_onnx(tiny_bert.weights(), shape, padded=padded)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    inputs = {"ids": ids, "mask": mask} if padded else {"ids": ids}
    (embeddings,) = session.run(None, inputs)
    return np.asarray(embeddings)


@pytest.mark.parametrize("layers", [1, 3])
def test_embeddings_are_those_of_the_equations(layers: int) -> None:
    embeddings = run(ROWS, padded=True, layers=layers)
    expected = [tiny_bert.reference(tiny_bert.weights(), row, layers) for row in ROWS]
    np.testing.assert_allclose(embeddings, np.stack(expected), atol=1e-5)


def test_padding_changes_nothing() -> None:
    together = run(ROWS, padded=True)
    for at, row in enumerate(ROWS):
        np.testing.assert_allclose(run((row,), padded=True)[0], together[at], atol=1e-6)
        np.testing.assert_allclose(run((row,), padded=False)[0], together[at], atol=1e-6)


def test_a_missing_tensor_is_named() -> None:
    weights = tiny_bert.weights()
    del weights["encoder.layer.1.output.dense.bias"]
    with pytest.raises(ValueError, match=r"no 'encoder\.layer\.1\.output\.dense\.bias'"):
        to_onnx(weights, SHAPE, padded=True)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"model_type": "roberta"}, "must be a bert"),
        ({"hidden_act": "relu"}, "with gelu"),
        ({"position_embedding_type": "relative_key"}, "absolute"),
    ],
)
def test_another_architecture_is_refused(entry: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BertShape.from_config(tiny_bert.CONFIG | entry)
