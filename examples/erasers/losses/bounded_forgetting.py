"""The losses of GS-LoRA++ (arXiv 2501.09705) for a language model; its group lasso is a step of the
trainer.

`L = β relu(BOUND - NLL(forget)) + γ relu(FAR - KL(bare || model; forget))
   + KL(bare || model; retain)`

Once what is to be forgotten is as unlikely as the bound, and predicted as otherwise as FAR, nothing
pushes any further. The paper's classes have prototypes, the mean logits of their images, from which
what is forgotten goes away and at which the rest is held. A token of an answer is of no class that
others belong to: in a prototype's place stands the bare model's own prediction of it, so that the
paper's cross-entropy and its prototypes of what is retained are one term here.
"""

from __future__ import annotations

from torch import Tensor

from examples.erasers.data import Batch
from examples.erasers.forwards import Forwards, distance, divergence

BOUND = 5.0
FAR = 4.0
"""Both in nats a token."""
BETA = 1.0
GAMMA = 0.1


def loss(model: Forwards, forget: Batch, retain: Batch) -> tuple[Tensor, float]:
    """The loss, and the -log p of a token that is to be forgotten, in nats."""
    bare, _ = model.bare_log_probabilities(forget)
    ours, chosen = model.log_probabilities(forget)
    nll = -chosen.mean()
    forgotten = BETA * (BOUND - nll).relu() + GAMMA * (FAR - distance(bare, ours)).relu()
    return forgotten + divergence(model, retain), float(nll.detach())
