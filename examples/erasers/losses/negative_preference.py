"""Negative preference optimisation (NPO, arXiv 2404.05868), held by the divergence on what stays.

`L = -2/β E[log σ(-β log(p(answer) / p_bare(answer)))] + KL(bare || model; retain)`: gradient ascent
that slows down as an answer becomes less likely than it was.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from examples.erasers.data import Batch
from examples.erasers.forwards import Forwards, by_row, divergence

BETA = 0.1


def loss(model: Forwards, forget: Batch, retain: Batch) -> tuple[Tensor, float]:
    """The loss, and the -log p of a token that is to be forgotten, in nats."""
    _, chosen = model.log_probabilities(forget)
    _, bare = model.bare_log_probabilities(forget)
    ratio = by_row(chosen - bare, forget)
    preference = -2 / BETA * logsigmoid(-BETA * ratio).mean()
    return preference + divergence(model, retain), -float(chosen.detach().mean())
