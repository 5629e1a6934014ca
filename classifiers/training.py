"""Training heads: binary cross-entropy on pairs of unsafe and similar safe prompts.

A plain classifier has adversarial pockets: its gradient leads to embeddings that it calls safe and
from which the model generates the concept all the same. Noise on the states, and attacks on them
during training (labels kept, Madry et al. 2018, in the l2 norm of a whole prompt), close those
nearby.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from classifiers.heads import PARTS, Heads, fresh


@dataclass(frozen=True)
class Recipe:
    """How heads are trained.

    `noise` and `radius` are shares: of the states' deviation, and of a prompt's norm. `attacks` is
    the number of gradient steps of an attack within `radius`; 0 trains on clean states alone.
    """

    members: int = 1
    queries: int = 4
    hidden: int = 32
    steps: int = 600
    batch: int = 96
    rate: float = 3e-3
    decay: float = 0.02
    noise: float = 0.5
    radius: float = 0.1
    attacks: int = 1
    seed: int = 0


def train_heads(
    states: Tensor,
    unsafe: Tensor,
    recipe: Recipe,
    tick: Callable[[int], None] = lambda _steps: None,
    *,
    start: Heads | None = None,
    weights: Tensor | None = None,
) -> Heads:
    """Train the heads of all members on `states [n, tokens, width]` and labels `unsafe [n]`.

    Half of each batch is unsafe, half safe, sampled by their `weights [n]`, or all alike. The
    states are standardised by one mean and deviation per coordinate; both are folded into the
    returned heads. `tick(1)` is called after each step. The heads go on from `start`, whose number
    and shapes count in place of the recipe's, or from random ones.
    """
    flat = states.float().flatten(0, 1)
    mean, deviation = flat.mean(0), flat.std(0).clamp(min=1e-6)
    standardised = (states.float() - mean) / deviation
    if start is None:
        heads = fresh(
            recipe.members,
            states.shape[-1],
            queries=recipe.queries,
            hidden=recipe.hidden,
            seed=recipe.seed,
        )
    else:
        heads = _unfolded(start, mean, deviation)
    trained = {name: part.clone().requires_grad_() for name, part in heads.parts().items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=recipe.rate, weight_decay=recipe.decay)
    random = torch.Generator().manual_seed(recipe.seed)
    positive, negative = unsafe.nonzero()[:, 0], (~unsafe).nonzero()[:, 0]
    half = recipe.batch // 2
    labels = torch.cat([torch.ones(half), torch.zeros(half)])[:, None].expand(-1, len(heads))
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * min(1.0, 2.0 * (1.0 - step / recipe.steps))
        sides = [side[_sampled(side, weights, half, random)] for side in (positive, negative)]
        rows = torch.cat(sides)
        batch = standardised[rows]
        level = recipe.noise * torch.rand(len(batch), 1, 1, generator=random)
        batch = batch + level * torch.randn(batch.shape, generator=random)
        batch = attacked(Heads(**trained), batch, labels, recipe)
        loss = F.binary_cross_entropy_with_logits(Heads(**trained)(batch), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        tick(1)
    detached = {name: part.detach() for name, part in trained.items()}
    return _folded(Heads(**detached), mean, deviation)


def attacked(heads: Heads, batch: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """The batch, every prompt moved by up to `radius` of its norm to where the heads err most."""
    if not recipe.attacks or not recipe.radius:
        return batch
    frozen = Heads(**{name: getattr(heads, name).detach() for name in PARTS})
    reach = recipe.radius * batch.flatten(1).norm(dim=1)[:, None, None]
    moved = batch
    for _ in range(recipe.attacks):
        moved = moved.detach().requires_grad_()
        loss = F.binary_cross_entropy_with_logits(frozen(moved), labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, moved)
        moved = moved + reach / recipe.attacks * _unit(slope)
    return moved.detach()


def _sampled(side: Tensor, weights: Tensor | None, count: int, random: torch.Generator) -> Tensor:
    """`count` positions in `side`, which has rows of one label."""
    if weights is None:
        return torch.randint(len(side), (count,), generator=random)
    return weights[side].multinomial(count, replacement=True, generator=random)


def _unit(slope: Tensor) -> Tensor:
    size = slope.flatten(1).norm(dim=1).clamp(min=1e-12)
    unit: Tensor = slope / size[:, None, None]
    return unit


def _folded(heads: Heads, mean: Tensor, deviation: Tensor) -> Heads:
    """Heads on raw states: `q · (x - μ)/σ` is `(q/σ) · x` up to a constant that softmax drops."""
    members, k, width = heads.queries.shape
    by_query = heads.hidden.reshape(members, k, width, -1) / deviation[:, None]
    shift = torch.einsum("w,mkwd->md", mean, by_query)
    return replace(
        heads,
        queries=heads.queries / deviation,
        hidden=by_query.reshape(members, k * width, -1),
        hidden_bias=heads.hidden_bias - shift,
    )


def _unfolded(heads: Heads, mean: Tensor, deviation: Tensor) -> Heads:
    """The inverse of `_folded`: heads on standardised states."""
    members, k, width = heads.queries.shape
    by_query = heads.hidden.reshape(members, k, width, -1)
    shift = torch.einsum("w,mkwd->md", mean, by_query)
    return replace(
        heads,
        queries=heads.queries * deviation,
        hidden=(by_query * deviation[:, None]).reshape(members, k * width, -1),
        hidden_bias=heads.hidden_bias + shift,
    )
