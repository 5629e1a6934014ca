"""The linear score of a prompt, in closed form and stacked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steering.methods.prompt_score import PromptScore, discriminant
from tests.steering.methods.random_guards import prompts


def test_safe_prompts_have_a_mean_of_zero_and_unsafe_ones_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    safe, unsafe = (
        torch.randn(40, 6, generator=generator),
        torch.randn(9, 6, generator=generator) + 1.0,
    )
    weights, bias = discriminant(unsafe, safe, 0.3)
    assert abs(float((safe @ weights + bias).mean())) < 1e-5
    assert abs(float((unsafe @ weights + bias).mean()) - 1.0) < 1e-5


def test_the_weights_are_the_shrunken_fisher_direction() -> None:
    rng = np.random.default_rng(0)
    safe, unsafe = rng.standard_normal((40, 6)), rng.standard_normal((9, 6)) + 1.0
    spread = np.cov(safe.T)
    spread += 0.3 * np.trace(spread) / 6 * np.eye(6)
    direction = np.linalg.solve(spread, unsafe.mean(0) - safe.mean(0))
    weights, _ = discriminant(torch.tensor(unsafe), torch.tensor(safe), 0.3)
    cosine = weights.numpy() @ direction / np.linalg.norm(weights) / np.linalg.norm(direction)
    assert cosine == pytest.approx(1.0)


def test_prompts_that_cannot_be_separated_are_refused() -> None:
    safe = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]])
    with pytest.raises(ValueError, match="phrases and the safe prompts have the same embedding"):
        discriminant(torch.zeros(3, 2), safe, 0.3)
    with pytest.raises(ValueError, match="safe prompts all have the same embedding"):
        discriminant(safe, torch.ones(3, 2), 0.3)


def test_stacked_scores_are_those_of_each_prompt_and_guard() -> None:
    text, generator = prompts(4), torch.Generator().manual_seed(1)
    clip = [torch.randn(6, generator=generator), None, torch.randn(6, generator=generator)]
    t5 = [torch.randn(10, generator=generator), torch.randn(10, generator=generator), None]
    bias = torch.tensor([0.5, -1.0, 2.0])
    scores = PromptScore({"clip": clip, "t5": t5, "pooled": [None] * 3}, bias)(text)
    for row in range(4):
        for column in range(3):
            score = float(bias[column])
            for name, vectors in (("clip", clip), ("t5", t5)):
                vector = vectors[column]
                if vector is not None:
                    mean = text.states[name][row][text.masks[name][row]].mean(0)
                    score += float(vector @ mean)
            assert float(scores[row, column]) == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_has_no_score(value: float) -> None:
    text = prompts(3)
    text.states["pooled"][1, 0, 2] = value  # in a stream that the guard does not even read
    scores = PromptScore({"clip": [torch.ones(6)]}, torch.zeros(1))(text)
    assert scores.isnan()[:, 0].tolist() == [False, True, False]
