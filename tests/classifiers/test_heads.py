"""Stacked heads compute the equations of each, in torch and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from classifiers.heads import Heads, fresh, stacked
from classifiers.onnx import Detector


def random_heads(
    members: int, *, queries: int = 2, hidden: int = 5, seed: int = 0, width: int = 7
) -> Heads:
    heads = fresh(members, width, queries=queries, hidden=hidden, seed=seed)
    random = torch.Generator().manual_seed(seed + 100)
    # untrained biases are zero, and would not show whether they are used
    return Heads(
        **heads.parts()
        | {
            "hidden_bias": torch.randn(members, hidden, generator=random),
            "out_bias": torch.randn(members, generator=random),
        }
    )


def reference(heads: Heads, states: Tensor) -> Tensor:
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


def test_stacked_heads_compute_the_equation_of_each(states: Tensor) -> None:
    heads = random_heads(3)
    torch.testing.assert_close(heads(states), reference(heads, states))


def test_stacking_heads_of_unlike_sizes_changes_no_logit(states: Tensor) -> None:
    small, large = (
        random_heads(2, queries=1, hidden=3),
        random_heads(1, queries=3, hidden=8, seed=5),
    )
    both = stacked([small, large])
    expected = torch.cat([small(states), large(states)], 1)
    torch.testing.assert_close(both(states), expected)


def test_selected_heads_keep_their_logits(states: Tensor) -> None:
    heads = random_heads(5)
    selected = torch.tensor([3, 1])
    torch.testing.assert_close(heads.select(selected)(states), heads(states)[:, selected])


def test_heads_of_other_widths_are_not_stacked() -> None:
    with pytest.raises(ValueError, match="different widths"):
        stacked([random_heads(1), random_heads(1, width=9)])


def test_a_part_of_the_wrong_shape_is_named() -> None:
    parts = random_heads(2).parts() | {"out": torch.zeros(3, 5)}
    with pytest.raises(ValueError, match="out of heads"):
        Heads(**parts)


def test_onnx_gives_the_logits_of_torch(states: Tensor) -> None:
    heads = random_heads(64)
    logits = Detector(heads)(states.numpy())
    np.testing.assert_allclose(logits, heads(states).numpy(), atol=1e-4)
    assert logits.std() > 0.1


def test_onnx_takes_any_number_of_rows_and_tokens() -> None:
    detector = Detector(random_heads(2))
    for shape in ((1, 1, 7), (5, 3, 7)):
        assert detector(np.zeros(shape, np.float32)).shape == (shape[0], 2)
