"""Which token stands for which when one prompt replaces another."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from guard.fitting.images.closed_form.states import counterparts


@pytest.mark.parametrize(
    ("instead", "expected"),
    [
        # a begin and an end mark, and nothing between
        ([1, 1, 0, 0, 0, 0], [[0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]),
        ([1, 1, 1, 1, 0, 0], [[0, 1, 2, 3, 3, 0], [0, 3, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0]]),
        # padded on the left
        ([0, 0, 0, 1, 1, 1], [[3, 4, 5, 5, 5, 0], [3, 5, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0]]),
        ([0, 0, 0, 0, 0, 0], None),
    ],
)
def test_tokens_map_to_the_tokens_at_their_positions(instead: list[int], expected: Any) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    positions = counterparts(mask, torch.tensor([instead] * 3).bool())
    assert expected is None or positions.tolist() == expected
    assert positions.shape == mask.shape


def test_every_row_has_a_replacement_of_its_own() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]]).bool()
    instead = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    assert counterparts(mask, instead).tolist() == [[0, 1, 1, 0], [0, 1, 4, 0]]
