"""Trained factors against the same change in the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from guard.errors import DataError
from guard.fitting.overlays.base import Base
from guard.fitting.overlays.training import Deltas, Training, train


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.linear = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        output: Tensor = self.norm(self.linear(self.conv(image).movedim(1, -1)))
        return output


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TARGET = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2))


def _trained(steps: int = 20, rate: float = 1e-2) -> tuple[_Network, Deltas, list[float]]:
    network = _Network()
    training = Training(rank=2, steps=steps, rate=rate)
    deltas = Deltas(Base({"": network}), ["conv", "linear"], training)

    def loss(_step: int) -> Tensor:
        with deltas.on():
            return (network(IMAGE) - TARGET).square().mean()

    return network, deltas, train(deltas, loss, training)


def test_factors_do_what_the_weights_would() -> None:
    network, deltas, losses = _trained()
    assert losses[-1] < 0.95 * losses[0]
    bare = network(IMAGE)
    with deltas.on():
        changed = network(IMAGE)
    assert torch.equal(network(IMAGE), bare) and not torch.equal(changed, bare)
    factors, edited = deltas.factors(), copy.deepcopy(network)
    for name in ("conv", "linear"):
        weight = edited.get_submodule(name).weight
        delta = factors.writes[name].T @ factors.reads[name].flatten(1)
        weight.data += delta.reshape(weight.shape)
        assert len(factors.reads[name]) == 2
    torch.testing.assert_close(edited(IMAGE), changed.detach(), atol=1e-5, rtol=1e-5)


def test_before_training_nothing_is_changed() -> None:
    network = _Network()
    deltas = Deltas(Base({"": network}), ["linear"], Training())
    with deltas.on():
        changed = network(IMAGE)
    assert torch.equal(changed, network(IMAGE))
    with pytest.raises(DataError, match="has left every weight as it was"):
        deltas.factors()


def test_a_layer_that_cannot_be_overlaid_is_refused() -> None:
    for layers, what in ((["norm"], "norm"), ([], "no layer")):
        with pytest.raises(DataError, match=f"no overlay can be trained on {what}"):
            Deltas(Base({"": _Network()}), layers, Training())


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    with pytest.raises(DataError, match="the loss of step 1 is not finite"):
        training = Training(steps=2)
        deltas = Deltas(Base({"": _Network()}), ["linear"], training)
        train(deltas, lambda _step: torch.tensor(torch.nan), training)
