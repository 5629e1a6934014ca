"""A static embedding: the mean of the word vectors that an encoder begins with.

It costs a look into a table for each token, where the encoder costs a pass through its layers. It
knows which words a text has, and not their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifiers.text.encoder.card import WORD_VECTORS

_QUANTISED, _ZERO = f"{WORD_VECTORS}_quantized", f"{WORD_VECTORS}_zero_point"


class WordVectors:
    """`table [vocabulary, width]`, in eight bits or float32; `zero` is the number that stands for
    zero. Their scale does not matter: means have length one."""

    def __init__(self, table: NDArray[Any], zero: float = 0.0) -> None:
        self._table, self._zero = table, np.float32(zero)

    @classmethod
    def read(cls, graph: Path) -> WordVectors:
        """The table in an encoder's graph. Raises ValueError where it has none."""
        import onnx
        from onnx import numpy_helper

        tensors = {tensor.name: tensor for tensor in onnx.load(graph).graph.initializer}
        if _QUANTISED in tensors:
            table, zero = (numpy_helper.to_array(tensors[name]) for name in (_QUANTISED, _ZERO))
            return cls(table, float(zero))
        if WORD_VECTORS in tensors:
            return cls(numpy_helper.to_array(tensors[WORD_VECTORS]))
        raise ValueError(f"{graph} has no table of word vectors: make it again")

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return len(self._table)

    @property
    def width(self) -> int:
        return int(self._table.shape[1])

    def means(self, windows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """`[windows, width]`, float32, of windows' token ids: the mean of the tokens' vectors,
        scaled to length one; zeros for a window without tokens."""
        sums = np.zeros((len(windows), self.width), np.float32)
        lengths = np.array([len(ids) for ids in windows], np.intp)
        if not lengths.any():
            return sums
        vectors = self._table[np.concatenate([np.asarray(ids, np.intp) for ids in windows])]
        starts = np.cumsum(lengths) - lengths
        some = lengths > 0
        vectors = vectors.astype(np.float32) - self._zero
        sums[some] = np.add.reduceat(vectors, starts[some], axis=0)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        return np.asarray(sums / np.where(norms > 0, norms, 1), np.float32)
