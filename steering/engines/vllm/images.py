"""Which tokens of vLLM's requests stand for images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Spans = NDArray[np.int64]
"""`[spans, 2]`: the first token of each span, and the one behind its last."""


def image_spans(features: Sequence[Any]) -> Spans | None:
    """The tokens in whose place the embeddings of images (or other media) stand, in the
    `MultiModalFeatureSpec`s of a request; None where there is none.

    Tokens beside them, such as those that begin and end an image, are text, as in the engine of
    transformers.
    """
    spans = [
        (first, last + 1)
        for feature in features
        # embeddings that a client has computed from text
        if feature.modality != "prompt_embeds"
        for first, last in feature.mm_position.extract_embeds_range()
    ]
    return np.array(spans, np.int64) if spans else None


def image_tokens(
    spans: Mapping[int, Spans], computed: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.bool_] | None:
    """Which tokens of a forward stand for images, `[tokens]`; None where none does.

    `spans` are by the index of the request; it has `lengths[i]` tokens in the forward, behind
    `computed[i]` others.
    """
    marks = np.zeros(int(lengths.sum()) + 1, np.int64)
    starts = lengths.cumsum() - lengths
    for i, of_request in spans.items():
        inside = np.clip(of_request - computed[i], 0, lengths[i]) + starts[i]
        np.add.at(marks, inside[:, 0], 1)
        np.add.at(marks, inside[:, 1], -1)
    image: NDArray[np.bool_] = marks.cumsum()[:-1] > 0
    return image if image.any() else None
