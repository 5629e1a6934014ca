"""The search reaches the goal, and its loss never rises."""

from __future__ import annotations

import torch
from torch import Tensor

from guard.fitting.prompts.swaps import greedy_swaps

VOCABULARY = torch.arange(5, 25)
GOAL = torch.tensor([7, 21, 9, 13])


class Distance:
    """The number of positions that differ from GOAL, with a gradient towards it."""

    def __init__(self) -> None:
        self.renewed: list[int] = []

    def renew(self, step: int) -> None:
        self.renewed.append(step)

    def gradient(self, content: Tensor) -> Tensor:
        slope = torch.zeros(len(content), 30)
        slope[torch.arange(len(content)), GOAL] = -1.0
        return slope

    def losses(self, candidates: Tensor) -> Tensor:
        return (candidates != GOAL).sum(1).float()


def _swaps(steps: int, seed: int = 0) -> list[tuple[int, list[int], float]]:
    candidates = greedy_swaps(
        torch.full((4,), 5),
        VOCABULARY,
        Distance(),
        steps=steps,
        candidates=24,
        top=2,
        generator=torch.Generator().manual_seed(seed),
    )
    return [(step.effort, step.content.tolist(), step.loss) for step in candidates]


def test_swaps_reach_the_goal_one_token_at_a_time() -> None:
    swaps = _swaps(8)
    assert [effort for effort, _, _ in swaps] == list(range(9))
    assert swaps[0][1] == [5, 5, 5, 5]
    for (_, before, loss), (_, after, next_loss) in zip(swaps, swaps[1:], strict=False):
        assert sum(a != b for a, b in zip(before, after, strict=True)) <= 1
        assert next_loss <= loss
    assert swaps[-1][1] == GOAL.tolist()


def test_swaps_use_the_vocabulary_alone_and_repeat() -> None:
    assert _swaps(5) == _swaps(5)
    changed = {token for _, content, _ in _swaps(8, seed=3) for token in content}
    assert changed <= set(VOCABULARY.tolist())


def test_the_sequence_stays_where_no_swap_is_better() -> None:
    class Flat(Distance):
        def losses(self, candidates: Tensor) -> Tensor:
            return torch.ones(len(candidates))

    start = torch.tensor([6, 8, 10, 12])
    candidates = list(
        greedy_swaps(
            start,
            VOCABULARY,
            Flat(),
            steps=3,
            candidates=4,
            top=2,
            generator=torch.Generator().manual_seed(0),
        )
    )
    assert all(step.content.tolist() == start.tolist() for step in candidates)


def test_noise_is_renewed_at_every_step() -> None:
    objective = Distance()
    list(
        greedy_swaps(
            GOAL,
            VOCABULARY,
            objective,
            steps=3,
            candidates=2,
            top=1,
            generator=torch.Generator().manual_seed(0),
        )
    )
    assert objective.renewed == [0, 1, 2, 3]
