"""Linear probes on a network's hidden states: is the concept at any place of a picture.

    logit = log Σ_places exp(w · h_place + b)

One place that shows the concept is enough: the smooth form of multiple-instance learning's maximum,
taught with a label for the whole picture. A denoiser's states need no more than a linear probe
(Baranchuk et al., arXiv 2112.03126; Alain and Bengio, arXiv 1610.01644). Probes of many concepts,
and several members of one, are stacked: one product scores them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Probes:
    """Stacked probes, float32: `weight [probes, width]`, `bias [probes]`.

    Raises ValueError where they do not belong together.
    """

    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise ValueError("a probe's weight must be [probes, width], its bias [probes]")

    def __len__(self) -> int:
        return len(self.weight)

    def __call__(self, states: Tensor) -> Tensor:
        """Logits `[rows, probes]` of `states [rows, places, width]`, differentiable."""
        return (states @ self.weight.T + self.bias).logsumexp(1)


@dataclass(frozen=True)
class ProbeRecipe:
    """How a probe is trained; `noise` is a share of the states' deviation."""

    steps: int = 500
    batch: int = 128
    rate: float = 1e-2
    decay: float = 0.05
    noise: float = 0.3
    seed: int = 0


def train_probe(
    states: Tensor,
    shown: Tensor,
    recipe: ProbeRecipe,
    tick: Callable[[int], None] = lambda _steps: None,
) -> Probes:
    """One probe of `states [n, places, width]` and labels `shown [n]`, by cross-entropy.

    Batches are drawn half with the concept, half without. The states are standardised by a mean and
    deviation a coordinate, both folded into the probe that comes back. `tick` is told of each step.
    """
    mean = states.float().mean((0, 1))
    deviation = states.float().std((0, 1)).clamp(min=1e-6)
    ready = (states.float() - mean) / deviation
    weight = torch.zeros(1, states.shape[2], requires_grad=True)
    bias = torch.full((1,), -3.0, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=recipe.rate, weight_decay=recipe.decay)
    draw = torch.Generator().manual_seed(recipe.seed)
    with_it, without = shown.nonzero()[:, 0], (~shown).nonzero()[:, 0]
    half = recipe.batch // 2
    labels = torch.cat([torch.ones(half), torch.zeros(half)])
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * min(1.0, 2.0 * (1.0 - step / recipe.steps))
        rows = torch.cat(
            [
                among[torch.randint(len(among), (half,), generator=draw)]
                for among in (with_it, without)
            ]
        )
        batch = ready[rows]
        batch = batch + recipe.noise * torch.randn(batch.shape, generator=draw)
        loss = F.binary_cross_entropy_with_logits(Probes(weight, bias)(batch)[:, 0], labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        optimizer.step()
        tick(1)
    with torch.no_grad():
        folded = weight / deviation
        return Probes(folded, bias - folded @ mean)
