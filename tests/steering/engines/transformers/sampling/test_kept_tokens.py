"""`top_k`, `top_p` and `min_p` keep the tokens that transformers' own warpers keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from steering.engines.transformers.sampling.choice import sample

VOCABULARY = 40
GRID = (torch.arange(300, dtype=torch.float64) + 0.5) / 300


def expected(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The tokens at `GRID` of the distribution that transformers would draw from."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    warped = warpers(torch.zeros(1, 1, dtype=torch.long), logits[None].clone())[0]
    probability, order = warped.double().softmax(-1).sort(descending=True, stable=True)
    return order[torch.searchsorted(probability.cumsum(-1), GRID, right=True)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 3, 17, VOCABULARY, 1000]),
    top_p=st.sampled_from([1.0, 0.93, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_samples_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = 3 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))
    rows = len(GRID)
    samples = sample(
        logits.expand(rows, -1),
        torch.full((rows,), temperature),
        torch.full((rows,), top_p),
        GRID,
        top_k=torch.full((rows,), top_k),
        min_p=torch.full((rows,), min_p),
    )
    # a bound of the grid may fall on the other side of a rounding error
    assert (samples != expected(logits, temperature, top_k, top_p, min_p)).sum() <= 1


@pytest.mark.parametrize("neighbours", ["plain", "bounded"])
def test_a_row_without_bounds_is_sampled_as_alone(neighbours: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(200, VOCABULARY, generator=generator)
    uniforms = torch.rand(200, dtype=torch.float64, generator=generator)
    heat, nucleus = torch.full((200,), 1.3), torch.full((200,), 0.9)
    bounds = {}
    if neighbours == "bounded":
        every = (torch.arange(200) % 2).float()
        bounds = {"top_k": (2 * every).long(), "min_p": every / 2}
    beside = sample(logits, heat, nucleus, uniforms, **bounds)
    alone = sample(logits[::2], heat[::2], nucleus[::2], uniforms[::2])
    assert torch.equal(beside[::2], alone)
    assert torch.equal(beside, sample(logits, heat, nucleus, uniforms)) == (neighbours == "plain")
