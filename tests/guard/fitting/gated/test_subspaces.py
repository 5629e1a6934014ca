"""Subspaces against their definitions."""

from __future__ import annotations

from typing import Any

import torch

from guard.fitting.gated.subspaces import levels
from guard.reporting.progress import Lines
from steering.prompt import Prompt

PROMPTS = [Prompt((1, 2, 5, 6)), Prompt((1, 2, 7)), Prompt((1, 2))]


class Chat:
    """Token t has the state `[t, 1]` after the first layer, and `[0, -2 t]` after the second."""

    depth, width = 2, 2

    def states(self, prompts: Any, layers: Any, advance: Any) -> Any:
        for i, prompt in enumerate(prompts):
            token = torch.tensor([*map(float, prompt.tokens)])
            zero, one = torch.zeros_like(token), torch.ones_like(token)
            states = [torch.stack([token, one], -1), torch.stack([zero, -2 * token], -1)]
            yield i, torch.stack([states[layer] for layer in layers], 1)


def test_levels_are_of_tokens_and_not_of_the_mean_states_of_prompts() -> None:
    directions = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    found = levels(Chat(), PROMPTS, directions, Lines().begin)  # type: ignore[arg-type]
    # what all prompts begin with does not count, but where a prompt has nothing else
    sizes = torch.tensor([5.0, 6.0, 7.0, 2.0])
    wanted = [[float(s.mean()), float(s.std())] for s in (sizes, 2 * sizes)]
    torch.testing.assert_close(found, torch.tensor(wanted))
