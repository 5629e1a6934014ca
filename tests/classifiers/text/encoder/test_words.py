"""Means of word vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from classifiers.text.encoder.card import GRAPH, WORD_VECTORS
from classifiers.text.encoder.conversion import Precision, convert
from classifiers.text.encoder.words import WordVectors
from tests.classifiers.text import tiny_bert


def _folder(tmp_path: Path, precision: Precision) -> Path:
    target = tmp_path / "made"
    target.mkdir()
    convert(tiny_bert.write(tmp_path / "source"), target, name="tiny", precision=precision)
    return target


@pytest.mark.parametrize(("precision", "off"), [("float32", 1e-5), ("int8", 0.03)])
def test_means_are_those_of_the_encoders_own_table(
    tmp_path: Path, precision: Precision, off: float
) -> None:
    words = WordVectors.read(_folder(tmp_path, precision) / GRAPH)
    table = tiny_bert.weights()[WORD_VECTORS]
    windows = [[4], [5, 5, 9], [], [7, 8, 9, 10, 11]]
    means = words.means(windows)
    assert means.shape == (4, words.width) and not means[2].any()
    for ids, mean in zip(windows, means, strict=True):
        if ids:
            expected = table[ids].mean(axis=0)
            np.testing.assert_allclose(mean, expected / np.linalg.norm(expected), atol=off)
    assert words.means([]).shape == (0, words.width)
    assert not words.means([[], []]).any()


def test_a_graph_without_a_table_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    onnx.save(helper.make_model(graph), tmp_path / GRAPH)
    with pytest.raises(ValueError, match="no table of word vectors"):
        WordVectors.read(tmp_path / GRAPH)
