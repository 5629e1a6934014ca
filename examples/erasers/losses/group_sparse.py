"""A LoRA that is small by decoder layer, as GS-LoRA++ trains one (arXiv 2501.09705): a group lasso
over layers drives the factors of whole layers to zero.

`L = β relu(BOUND - NLL(forget)) + KL(bare || model; retain) + α Σ_l sqrt(|A_l|² + |B_l|²)`. Once
what is to be forgotten is as unlikely as the bound, nothing pushes any further. Without the
prototypes of its classes, of which a language model has none.
"""

from __future__ import annotations

from torch import Tensor

from examples.erasers.data import Batch
from examples.erasers.forwards import Forwards, divergence

BOUND = 5.0
"""Nats a token."""
BETA = 1.0
ALPHA = 0.02


def loss(model: Forwards, forget: Batch, retain: Batch) -> tuple[Tensor, float]:
    """The loss, and the -log p of a token that is to be forgotten, in nats."""
    _, chosen = model.log_probabilities(forget)
    nll = -chosen.mean()
    bounded = BETA * (BOUND - nll).relu()
    groups = ALPHA * model.sizes_by_layer().sum()
    return bounded + divergence(model, retain) + groups, float(nll.detach())
