from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from classifiers.heads import Heads, fresh, stacked
from classifiers.onnx import Detector


def some(
    members: int, *, queries: int = 2, hidden: int = 5, seed: int = 0, width: int = 7
) -> Heads:
    heads = fresh(members, width, queries=queries, hidden=hidden, seed=seed)
    draw = torch.Generator().manual_seed(seed + 100)
    # untrained biases are zero: nothing would show whether they are used
    return Heads(
        **heads.parts()
        | {
            "hidden_bias": torch.randn(members, hidden, generator=draw),
            "out_bias": torch.randn(members, generator=draw),
        }
    )


def slow(heads: Heads, states: Tensor) -> Tensor:
    """The module's equation, one row, head and query at a time."""
    logits = torch.zeros(len(states), len(heads))
    for row, prompt in enumerate(states):
        for head in range(len(heads)):
            pooled = [(prompt @ query).softmax(0) @ prompt for query in heads.queries[head]]
            hidden = F.gelu(torch.cat(pooled) @ heads.hidden[head] + heads.hidden_bias[head])
            logits[row, head] = hidden @ heads.out[head] + heads.out_bias[head]
    return logits


@pytest.fixture
def states() -> Tensor:
    return torch.randn(4, 6, 7, generator=torch.Generator().manual_seed(1))


def test_all_heads_at_once_give_what_each_gives(states: Tensor) -> None:
    heads = some(3)
    torch.testing.assert_close(heads(states), slow(heads, states))


def test_heads_of_other_sizes_are_stacked_without_a_change(states: Tensor) -> None:
    small, large = some(2, queries=1, hidden=3), some(1, queries=3, hidden=8, seed=5)
    both = stacked([small, large])
    expected = torch.cat([small(states), large(states)], 1)
    torch.testing.assert_close(both(states), expected)


def test_some_of_the_heads_say_what_they_said_among_all(states: Tensor) -> None:
    heads = some(5)
    some_of_them = torch.tensor([3, 1])
    torch.testing.assert_close(heads.select(some_of_them)(states), heads(states)[:, some_of_them])


def test_heads_of_other_widths_are_not_stacked() -> None:
    with pytest.raises(ValueError, match="different widths"):
        stacked([some(1), some(1, width=9)])


def test_a_part_of_the_wrong_shape_is_named() -> None:
    parts = some(2).parts() | {"out": torch.zeros(3, 5)}
    with pytest.raises(ValueError, match="out of heads"):
        Heads(**parts)


def test_onnx_says_what_torch_says(states: Tensor) -> None:
    heads = some(64)
    said = Detector(heads)(states.numpy())
    np.testing.assert_allclose(said, heads(states).numpy(), atol=1e-4)
    assert said.std() > 0.1


def test_onnx_takes_any_number_of_rows_and_tokens() -> None:
    detector = Detector(some(2))
    for shape in ((1, 1, 7), (5, 3, 7)):
        assert detector(np.zeros(shape, np.float32)).shape == (shape[0], 2)
