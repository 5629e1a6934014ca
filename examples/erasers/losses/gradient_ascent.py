"""Gradient ascent on the answers to forget, held by the divergence on those to retain.

`L = -NLL(forget) + KL(bare || model; retain)` (arXiv 2310.10683, without its random answers).
"""

from __future__ import annotations

from torch import Tensor

from examples.erasers.data import Batch
from examples.erasers.forwards import Forwards, divergence


def loss(model: Forwards, forget: Batch, retain: Batch) -> tuple[Tensor, float]:
    """The loss, and the -log p of a token that is to be forgotten, in nats."""
    _, chosen = model.log_probabilities(forget)
    return chosen.mean() + divergence(model, retain), -float(chosen.detach().mean())
