"""Linear probes on a network's hidden states: is the concept at any place of a picture.

    logit = log Σ_places exp(w · h_place + b)

One place that shows the concept is enough: the smooth form of multiple-instance learning's maximum,
taught with a label for the whole picture. A denoiser's states need no more than a linear probe
(Baranchuk et al., arXiv 2112.03126; Alain and Bengio, arXiv 1610.01644). Probes of many concepts,
and several members of one, are stacked: one product scores them all.
"""

from __future__ import annotations

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
    """How a probe is trained: `penalty` is that of the squared weights, `steps` the most of
    L-BFGS."""

    penalty: float = 1e-2
    steps: int = 100


def train_probe(states: Tensor, shown: Tensor, recipe: ProbeRecipe) -> Probes:
    """One probe of `states [n, places, width]` and labels `shown [n]`, by cross-entropy.

    Both labels weigh the same, however many there are of each. The states are standardised by a
    mean and deviation a coordinate, both folded into the probe that comes back.
    """
    mean = states.float().mean((0, 1))
    deviation = states.float().std((0, 1)).clamp(min=1e-6)
    ready = (states.float() - mean) / deviation
    labels = shown.float()
    share = labels.mean()
    each = torch.where(shown, 0.5 / share, 0.5 / (1.0 - share))
    weight = torch.zeros(1, states.shape[2], requires_grad=True)
    bias = torch.full((1,), -3.0, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=recipe.steps, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        said = Probes(weight, bias)(ready)[:, 0]
        wrong = F.binary_cross_entropy_with_logits(said, labels, reduction="none")
        total = (each * wrong).mean() + recipe.penalty * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        folded = weight / deviation
        return Probes(folded, bias - folded @ mean)
