"""Samples follow the model's distribution and depend on their own seed and step alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from steering.engines.transformers.sampling.choice import sample, uniform

LOGITS = torch.tensor([2.0, 0.5, -1.0, 1.0, 0.0, -3.0])
# the 99.99 % quantiles of chi-square: a correct sampler passes them at nearly any seed
QUANTILE = {1: 15.1, 2: 18.4, 5: 25.7, 99: 160.1}


def samples_of(
    count: int, *, temperature: float = 1.0, top_p: float = 1.0, logits: Tensor = LOGITS
) -> Tensor:
    uniforms = uniform(torch.arange(count), torch.zeros(count, dtype=torch.long))
    rows = logits.expand(count, -1)
    return sample(rows, torch.full((count,), temperature), torch.full((count,), top_p), uniforms)


def chi_square(counts: Tensor, expected: Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature: float) -> None:
    count = 20_000
    counts = samples_of(count, temperature=temperature).bincount(minlength=len(LOGITS))
    expected = (LOGITS / temperature).softmax(-1) * count
    assert chi_square(counts, expected) < QUANTILE[len(LOGITS) - 1]


def test_nucleus_keeps_the_fewest_tokens_that_reach_top_p() -> None:
    count = 20_000
    probability = LOGITS.softmax(-1)
    order = probability.argsort(descending=True)
    for kept in (2, 3):
        # just above what `kept - 1` tokens reach, hence `kept` of them
        top_p = float(probability[order][: kept - 1].sum()) + 1e-3
        counts = samples_of(count, top_p=top_p).bincount(minlength=len(LOGITS))
        assert set(counts.nonzero()[:, 0].tolist()) == set(order[:kept].tolist())
        inside = probability[order[:kept]]
        expected = inside / inside.sum() * count
        assert chi_square(counts[order[:kept]], expected) < QUANTILE[kept - 1]


@pytest.mark.parametrize("top_p", [0.0, 1e-9, 0.3])
def test_a_tiny_nucleus_is_greedy(top_p: float) -> None:
    assert set(samples_of(500, top_p=top_p, temperature=2.0).tolist()) == {0}


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-40, 1e-6])
def test_no_temperature_is_greedy(temperature: float) -> None:
    assert set(samples_of(500, temperature=temperature).tolist()) == {0}


def test_greedy_and_sampled_rows_share_a_batch() -> None:
    count = 400
    temperature = torch.tensor([0.0, 1.0]).repeat(count // 2)
    uniforms = uniform(torch.arange(count), torch.zeros(count, dtype=torch.long))
    samples = sample(LOGITS.expand(count, -1), temperature, torch.ones(count), uniforms)
    assert set(samples[::2].tolist()) == {0}
    assert len(set(samples[1::2].tolist())) > 3
    assert torch.equal(samples[1::2], samples_of(count)[1::2]), (
        "a row is sampled as in any other batch"
    )


def test_impossible_tokens_are_never_sampled() -> None:
    logits = torch.tensor([0.0, -torch.inf, 0.0, -torch.inf])
    for value in (0.0, 0.25, 0.5, 1.0 - 2.0**-32):
        number = torch.tensor([value], dtype=torch.float64)
        samples = sample(logits[None], torch.ones(1), torch.ones(1), number)
        assert int(samples) in (0, 2)


def test_tokens_of_equal_probability_are_ordered_by_their_ids() -> None:
    logits = torch.zeros(1, 64)
    for token in (0, 17, 63):
        middle = torch.tensor([(token + 0.5) / 64], dtype=torch.float64)
        assert int(sample(logits, torch.ones(1), torch.ones(1), middle)) == token


def test_intervals_are_closed_below_and_open_above() -> None:
    half = torch.tensor([0.5, 0.0], dtype=torch.float64)
    assert sample(torch.zeros(2, 2), torch.ones(2), torch.ones(2), half).tolist() == [1, 0]


@given(seed=st.integers(-(2**63), 2**63 - 1), step=st.integers(0, 2**31))
def test_uniform_is_in_the_unit_interval_and_reproducible(seed: int, step: int) -> None:
    seeds, steps = torch.tensor([seed, 3, seed]), torch.tensor([step, 7, step])
    samples = uniform(seeds, steps)
    assert samples.dtype == torch.float64
    assert ((samples >= 0) & (samples < 1)).all()
    assert samples[0] == samples[2] == uniform(seeds[:1], steps[:1])[0]


def test_the_largest_number_of_uniform_is_below_one() -> None:
    """The pair comes from running the generator backwards from all ones."""
    assert float(uniform(torch.tensor([2065556130]), torch.tensor([1]))) == 1.0 - 2.0**-32


@pytest.mark.parametrize("over", ["seeds", "steps", "high bits of seeds"])
def test_uniform_is_uniform(over: str) -> None:
    count = 50_000
    counter = torch.arange(count)
    fixed = torch.full((count,), 42)
    seeds, steps = {
        "seeds": (counter, fixed),
        "steps": (fixed, counter),
        "high bits of seeds": (counter << 40, fixed),
    }[over]
    samples = uniform(seeds, steps)
    counts = (samples * 100).long().bincount(minlength=100)
    assert chi_square(counts, torch.full((100,), count / 100)) < QUANTILE[99]
    # nor may neighbours be correlated
    assert abs(float(torch.corrcoef(torch.stack([samples[:-1], samples[1:]]))[0, 1])) < 0.02
