"""Guidance that turns round: from a share of the steps on it leads away from the prompt."""

import torch

from steering.images.embedding import Refinement
from steering.methods import Method
from steering.methods.prompt_score import stacked_gate


class LateTurn:
    """`term = 2 s (c - u)` once `turn` of the steps are done: the guidance changes its sign."""

    conditions, per_guard = None, 0

    def __init__(self, guards, device):
        self.names = [guard.name for guard in guards]
        self._gate = stacked_gate(guards, device)
        self._turn = torch.tensor([guard.number("turn") for guard in guards], device=device)

    def sense(self, text):
        return self._gate(text)

    def act(self, text, due, threshold, strength):
        return Refinement.none(text, strength)

    def term(self, at):
        shape = (-1, *[1] * (at.latents.ndim - 1))
        late = (at.progress >= self._turn[at.guard]).view(shape)
        term = 2 * at.strength.view(shape) * (at.conditional - at.unconditional).float()
        return torch.where(late, term, 0.0), at.memory


METHOD = Method(
    "late-turn",
    seam="guidance",
    stack=LateTurn,
    action="steer",
    bound_to="encoders",
    decides="before",
    gradient="exact",
)
