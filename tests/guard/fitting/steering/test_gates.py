"""The gate is learnt from prompts whose topical tokens nobody has marked."""

from __future__ import annotations

import torch

from guard.fitting.steering.gates import POOL, TokenStates, fit_gates

WIDTH, LAYERS, TOKENS = 16, 2, 12


def _states(count: int, topical: int, seed: int) -> TokenStates:
    """`count` sequences of noise; `topical` tokens of each lean towards one axis."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(count, TOKENS, LAYERS, WIDTH, generator=generator)
    states[:, 4 : 4 + topical, :, 0] += 4.0
    return TokenStates(
        states=states.flatten(0, 1).half(),
        sequence=torch.arange(count).repeat_interleave(TOKENS),
        behind_prefix=(torch.arange(TOKENS) >= 2).repeat(count),
        count=count,
    )


def test_pooled_is_the_mean_of_the_largest_token_scores() -> None:
    states = _states(3, 0, seed=0)
    scores = torch.arange(3 * TOKENS, dtype=torch.float32)
    largest = scores.view(3, TOKENS)[:, -POOL:].mean(1)
    assert torch.allclose(states.pooled(scores), largest)


def test_a_sequence_shorter_than_the_pool_counts_missing_tokens_as_zero() -> None:
    states = TokenStates(
        torch.zeros(1, 1, 1).half(), torch.tensor([0]), torch.tensor([True]), count=1
    )
    assert torch.allclose(states.pooled(torch.tensor([6.0])), torch.tensor([6.0 / POOL]))


def test_gates_find_the_topic_that_few_tokens_carry() -> None:
    near = torch.zeros(80, dtype=torch.bool)
    gates = fit_gates(_states(80, POOL, seed=1), _states(80, 0, seed=2), near, [0, 1])
    assert gates.shape == (2, WIDTH)
    heard = _states(50, POOL, seed=3)
    quiet = _states(50, 0, seed=4)
    lowest = heard.pooled(heard.score([0, 1], gates)).quantile(0.1)
    highest = quiet.pooled(quiet.score([0, 1], gates)).quantile(0.9)
    assert lowest > highest


def test_layers_of_another_scale_weigh_the_same() -> None:
    """A layer whose states are ten times larger must get gates ten times smaller."""
    forget, retain = _states(40, POOL, seed=5), _states(40, 0, seed=6)
    near = torch.zeros(40, dtype=torch.bool)
    plain = fit_gates(forget, retain, near, [0, 1])
    stretch = torch.tensor([1.0, 8.0])[:, None].half()

    def stretched(states: TokenStates) -> TokenStates:
        return TokenStates(
            states.states * stretch, states.sequence, states.behind_prefix, states.count
        )

    scaled = fit_gates(stretched(forget), stretched(retain), near, [0, 1])
    assert torch.allclose(scaled[0], plain[0], rtol=0.05, atol=1e-3)
    assert torch.allclose(scaled[1] * 8, plain[1], rtol=0.05, atol=1e-3)
