"""Directional ablation (arXiv 2406.11717), gated: one direction out of the residual stream."""

import torch

from steering.hidden.bank import Placement
from steering.methods import Method


class AblationGuards:
    """`h' = h - s r (r · h)` after `act_layers`; a token's score is `r · h` at `sense_layers`."""

    def __init__(self, guards, device):
        self.names = [guard.name for guard in guards]
        self.placements = [
            Placement(
                guard.layers("sense_layers"), guard.layers("act_layers"), int(guard.number("steps"))
            )
            for guard in guards
        ]
        directions = torch.stack([guard.array("direction", 1) for guard in guards])
        self._directions = (directions / directions.norm(dim=1, keepdim=True)).to(device)
        self.width = directions.shape[1]

    def sense(self, layer, states, columns=None):
        senses = [layer in placement.sense_layers for placement in self.placements]
        scores = states @ self._directions.T * torch.tensor(senses, device=states.device)
        return scores if columns is None else scores[..., columns]

    def act(self, layer, states, guard, age, strength):
        acts = [layer in placement.act_layers for placement in self.placements]
        strength = strength * torch.tensor(acts, device=states.device)[guard]
        direction = self._directions[guard]
        along = (states * direction).sum(-1, keepdim=True)
        return -strength[..., None] * along * direction


METHOD = Method(
    "directional-ablation",
    seam="hidden",
    stack=AblationGuards,
    action="steer",
    bound_to="model",
    decides="during",
    gradient="exact",
)
