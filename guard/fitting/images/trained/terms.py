"""Terms that several losses of trained erasers are made of.

They are of a network's own output, whatever it predicts. The publications write ε; a combination of
predictions of one noisy latent whose weights sum to one is the same combination of outputs.
"""

from __future__ import annotations

from torch import Tensor


def mse(left: Tensor, right: Tensor) -> Tensor:
    """The mean squared difference, a scalar."""
    return (left - right).square().mean()


def led_away(reference: Tensor, concept: Tensor, eta: float) -> Tensor:
    """`r - η (c - r)`: guidance from the concept's prediction, by η; to it where η is negative."""
    return reference - eta * (concept - reference)
