"""Which tokens of vLLM's requests stand for images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from steering.engines.vllm.images import image_spans, image_tokens


@dataclass(frozen=True)
class Position:
    spans: list[tuple[int, int]]

    def extract_embeds_range(self) -> list[tuple[int, int]]:
        """First and last token of each span, as vLLM gives them."""
        return self.spans


@dataclass(frozen=True)
class Feature:
    mm_position: Position
    modality: str = "image"


def test_spans_end_behind_their_last_token() -> None:
    spans = image_spans([Feature(Position([(2, 4), (6, 6)])), Feature(Position([(9, 10)]))])
    assert spans is not None and spans.tolist() == [[2, 5], [6, 7], [9, 11]]


def test_embeddings_of_text_are_no_image() -> None:
    assert image_spans([]) is None
    assert image_spans([Feature(Position([(0, 3)]), modality="prompt_embeds")]) is None


@pytest.mark.parametrize("part", [1, 2, 3, 5, 12])
def test_an_image_may_be_cut_by_parts_of_a_prompt(part: int) -> None:
    spans = np.array([[2, 5], [6, 7], [9, 11]])
    expected = [i in {2, 3, 4, 6, 9, 10} for i in range(12)]
    found: list[bool] = []
    for first in range(0, 12, part):
        length = min(part, 12 - first)
        image = image_tokens({0: spans}, np.array([first]), np.array([length]))
        found += [False] * length if image is None else image.tolist()
    assert found == expected


def test_rows_with_and_without_images_stand_one_behind_the_other() -> None:
    spans = {1: np.array([[0, 2]]), 3: np.array([[4, 6]])}
    # the image of request 1 was computed before; that of request 3 begins within its part
    image = image_tokens(spans, np.array([7, 2, 0, 3]), np.array([1, 3, 2, 2]))
    assert image is not None
    assert np.flatnonzero(image).tolist() == [7]
    assert image_tokens(spans, np.array([7, 2, 0, 6]), np.array([1, 1, 2, 1])) is None
