"""An embedding is the pooled states of transformers' own forward, whatever shares the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from steering.engines.transformers.embeddings import Pooling, StateEmbedder
from tests.steering.tiny import CONFIGS, VOCABULARY, tiny_model

TEXTS = [
    tuple((7 * i + j * j) % VOCABULARY for j in range(n)) for i, n in enumerate((3, 41, 1, 20))
]


@torch.inference_mode()
def expected(model: Any, text: tuple[int, ...], pooling: Pooling) -> NDArray[np.float32]:
    states = model.get_decoder()(input_ids=torch.tensor([text])).last_hidden_state[0]
    pooled = states.mean(0) if pooling == "mean" else states[-1]
    unit: NDArray[np.float32] = (pooled / pooled.norm()).numpy()
    return unit


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if not kind.startswith("gpt")])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_batch_gives_what_each_text_has_alone(kind: str, pooling: Pooling) -> None:
    model = tiny_model(kind)
    embedder = StateEmbedder(model, pooling)
    rows = embedder.embed(TEXTS)
    assert rows.dtype == np.float32 and np.allclose(np.linalg.norm(rows, axis=1), 1)
    for row, text in zip(rows, TEXTS, strict=True):
        np.testing.assert_allclose(row, expected(model, text, pooling), atol=2e-5)
        parts, read = embedder.begin(text), None
        while read is None:
            read = embedder.read(parts, 7)
        np.testing.assert_allclose(read[0], row, atol=2e-5)
