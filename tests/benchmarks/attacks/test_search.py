"""The search finds what is there to be found, and never what is worse than before."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.attacks.search import greedy_swaps

VOCABULARY = torch.arange(5, 25)
GOAL = torch.tensor([7, 21, 9, 13])


class Distance:
    """The number of places that differ from GOAL; a gradient that points the right way."""

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
    found = greedy_swaps(
        torch.full((4,), 5),
        VOCABULARY,
        Distance(),
        steps=steps,
        candidates=24,
        top=2,
        generator=torch.Generator().manual_seed(seed),
    )
    return [(each.effort, each.content.tolist(), each.loss) for each in found]


def test_swaps_reach_the_goal_one_token_at_a_time() -> None:
    found = _swaps(8)
    assert [effort for effort, _, _ in found] == list(range(9))
    assert found[0][1] == [5, 5, 5, 5]
    for (_, before, loss), (_, after, next_loss) in zip(found, found[1:], strict=False):
        assert sum(a != b for a, b in zip(before, after, strict=True)) <= 1
        assert next_loss <= loss
    assert found[-1][1] == GOAL.tolist()


def test_swaps_use_the_vocabulary_alone_and_repeat() -> None:
    assert _swaps(5) == _swaps(5)
    changed = {token for _, content, _ in _swaps(8, seed=3) for token in content}
    assert changed <= set(VOCABULARY.tolist())


def test_swaps_keep_what_is_there_where_nothing_is_better() -> None:
    class Flat(Distance):
        def losses(self, candidates: Tensor) -> Tensor:
            return torch.ones(len(candidates))

    start = torch.tensor([6, 8, 10, 12])
    found = list(
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
    assert all(each.content.tolist() == start.tolist() for each in found)


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
