"""The loop that trains factors, on a tiny network and on losses whose answers are known."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from guard.errors import DataError
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.overlays.base import Base
from guard.fitting.overlays.deltas import Deltas
from guard.fitting.overlays.training import EVERY, Losses, Objective, Training, train
from guard.fitting.overlays.training import without_conflict as projected
from guard.fitting.resuming import ResumableGenerator


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
TRAINING = Training(rank=2, steps=20, rate=1e-2)


def _deltas(training: Training = TRAINING, *layers: str) -> tuple[_Network, Deltas]:
    network = _Network()
    layers = layers or ("conv", "linear")
    return network, Deltas(Base({"": network}), layers, training.rank, training.seed)


def _erasing(network: _Network, deltas: Deltas) -> Objective:
    def losses(_step: int) -> Losses:
        with deltas.on():
            return Losses((network(IMAGE) - TARGET).square().mean())

    return Objective(losses)


def _trained(training: Training = TRAINING) -> tuple[_Network, Deltas, list[float]]:
    network, deltas = _deltas(training)
    return network, deltas, train(deltas, _erasing(network, deltas), training)


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
    network, deltas = _deltas(Training(rank=4), "linear")
    with deltas.on():
        changed = network(IMAGE)
    assert torch.equal(changed, network(IMAGE))
    with pytest.raises(DataError, match="has left every weight as it was"):
        deltas.factors()


def test_a_layer_that_cannot_be_overlaid_is_refused() -> None:
    for layers, what in ((["norm"], "norm"), ([], "no layer")):
        with pytest.raises(DataError, match=f"no overlay can be trained on {what}"):
            Deltas(Base({"": _Network()}), layers, 2)


def test_a_rank_over_a_layers_is_refused_with_its_name() -> None:
    with pytest.raises(DataError, match="a rank of 5 is larger than that of linear, 4: give a"):
        Deltas(Base({"": _Network()}), ["conv", "linear"], 5)


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    _, deltas = _deltas()
    objective = Objective(lambda _step: Losses(torch.tensor(torch.nan)))
    with pytest.raises(DataError, match="the loss of step 1 is not finite"):
        train(deltas, objective, TRAINING)


@pytest.mark.parametrize("side", ["erase", "keep"])
def test_a_loss_that_the_factors_have_no_part_in_is_an_error(side: str) -> None:
    network, deltas = _deltas()

    def losses(_step: int) -> Losses:
        outside = (network(IMAGE) - TARGET).square().mean()
        with deltas.on():
            inside = (network(IMAGE) - TARGET).square().mean()
        return Losses(**({"erase": inside, "keep": inside} | {side: outside}))

    with pytest.raises(ValueError, match=f"the loss `{side}` is computed outside of the deltas'"):
        train(deltas, Objective(losses), TRAINING)


def test_hooks_that_were_there_before_read_what_is_changed() -> None:
    """Losses of inner states read layers that may be changed themselves."""
    network, deltas = _deltas(TRAINING, "linear")
    with torch.no_grad():
        for parameter in deltas.parameters:
            parameter.fill_(0.5)
    read: list[Tensor] = []
    network.linear.register_forward_hook(lambda _module, _inputs, output: read.append(output))
    network(IMAGE)
    with deltas.on():
        network(IMAGE)
    states = network.conv(IMAGE).movedim(1, -1)
    change = 0.5 * 0.5 * TRAINING.rank * states.sum(-1, keepdim=True)
    torch.testing.assert_close(read[1], read[0] + change)


# -- two losses ------------------------------------------------------------------------------------


def test_a_gradient_in_conflict_loses_its_part_along_the_other() -> None:
    keep = torch.tensor([0.0, 2.0])
    assert torch.equal(projected(torch.tensor([3.0, -1.0]), keep), torch.tensor([3.0, 0.0]))
    # the length of what is taken out is that of the gradient itself, not of its unit vector
    keep, erase = torch.tensor([3.0, 4.0]), torch.tensor([-10.0, 0.0])
    expected = erase - (erase @ keep / 25.0) * keep
    torch.testing.assert_close(projected(erase, keep), expected)
    assert abs(float(projected(erase, keep) @ keep)) < 1e-5


def test_gradients_that_agree_are_left_alone() -> None:
    erase = torch.tensor([1.0, 5.0])
    for keep in (torch.tensor([0.0, 2.0]), torch.zeros(2)):
        assert torch.equal(projected(erase, keep), erase)


@pytest.mark.parametrize("project", [True, False])
def test_both_losses_are_summed_by_the_rule_that_was_asked_for(project: bool) -> None:
    """One step of Adam without momentum moves each value by the rate, against its gradient."""
    training = Training(rank=2, steps=1, rate=1e-3, project=project)
    network, deltas = _deltas(training, "linear")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in deltas.parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    before = [parameter.detach().clone() for parameter in deltas.parameters]

    def losses(_step: int) -> Losses:
        with deltas.on():
            output = network(IMAGE)
        return Losses((output - TARGET).square().mean(), 3.0 * (output + TARGET).square().mean())

    both = losses(0)
    keep_loss = both.keep
    assert keep_loss is not None
    erase = torch.autograd.grad(both.erase, deltas.parameters, retain_graph=True)
    keep = torch.autograd.grad(keep_loss, deltas.parameters)
    expected = []
    for e, k in zip(erase, keep, strict=True):
        along = float((e * k).sum())
        taken = along / float((k * k).sum()) if project and along < 0 else 0.0
        expected.append(e - taken * k + k)
    assert not project or any(float((e * k).sum()) < 0 for e, k in zip(erase, keep, strict=True))
    train(deltas, Objective(losses), training)
    for parameter, start, gradient in zip(deltas.parameters, before, expected, strict=True):
        moved = (parameter.detach() - start) / -training.rate
        torch.testing.assert_close(moved, gradient.sign(), atol=1e-2, rtol=0)


# -- the group lasso -------------------------------------------------------------------------------


def test_the_penalty_shortens_each_block_by_the_rate_times_alpha() -> None:
    _, deltas = _deltas()
    before = {name: tensor.clone() for name, tensor in deltas.state().items()}
    deltas.shrink(0.25)
    after = deltas.state()
    for layer in ("conv", "linear"):
        old, new = (
            torch.cat([of[f"{side}.{layer}"].flatten() for side in ("read", "write")])
            for of in (before, after)
        )
        torch.testing.assert_close(new.norm(), old.norm() - 0.25)
        torch.testing.assert_close(new / new.norm(), old / old.norm())


def test_a_layer_that_nothing_needs_becomes_zero_and_is_left_out() -> None:
    """The loss needs the linear layer; a step of the penalty is as long as both blocks together."""
    network, deltas = _deltas(TRAINING)
    sizes = {layer: float(deltas.state()[f"read.{layer}"].norm()) for layer in ("conv", "linear")}
    training = replace(TRAINING, steps=60, penalty=1.2 * sizes["conv"] / (60 * TRAINING.rate))

    def losses(_step: int) -> Losses:
        with deltas.on():
            # the states that the linear layer is given do not depend on the other one's change
            read = network.conv(IMAGE).detach().movedim(1, -1)
            return Losses(100.0 * (network.linear(read) - TARGET).square().mean())

    train(deltas, Objective(losses), training)
    assert deltas.zeroed == ["conv"]
    factors = deltas.factors()
    assert [*factors.reads] == [*factors.writes] == ["linear"]
    assert not any(bool(deltas.state()[f"{side}.conv"].any()) for side in ("read", "write"))


def test_a_block_that_is_zero_stays_zero() -> None:
    """Adam remembers gradients from before, and would move it again."""
    network, deltas = _deltas()
    training = replace(TRAINING, steps=5, penalty=1e-6)
    calls: list[list[str]] = []

    def losses(step: int) -> Losses:
        if step == 3:
            deltas.clear(["conv"])
        calls.append(deltas.zeroed)
        with deltas.on():
            return Losses((network(IMAGE) - TARGET).square().mean())

    train(deltas, Objective(losses), training)
    assert calls == [[], [], [], ["conv"], ["conv"]] and deltas.zeroed == ["conv"]


def test_a_penalty_that_leaves_no_layer_is_an_error() -> None:
    _, deltas, _ = _trained(replace(TRAINING, penalty=1e4))
    with pytest.raises(DataError, match="driven every layer's block to zero: give a smaller"):
        deltas.factors()


# -- going on --------------------------------------------------------------------------------------


class _Killed(Exception):
    pass


def _noisy_training(
    path: Path, killed_at: int | None = None, of: str = "one"
) -> tuple[list[float], dict[str, Tensor], int]:
    """Losses, factors, and how many updates were made; the loss draws noise."""
    training = replace(TRAINING, steps=2 * EVERY + 5, penalty=0.5)
    network, deltas = _deltas(training)
    generator = torch.Generator().manual_seed(7)
    made = 0

    def losses(step: int) -> Losses:
        nonlocal made
        if step == killed_at:
            raise _Killed
        made += 1
        noise = torch.randn(TARGET.shape, generator=generator)
        with deltas.on():
            return Losses((network(IMAGE) - TARGET - noise).square().mean())

    objective = Objective(losses, {"generator": ResumableGenerator(generator)})
    found = train(deltas, objective, training, kept=Checkpoints(path, of))
    return found, deltas.state(), made


def test_a_training_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, factors, made = _noisy_training(tmp_path / "whole.safetensors")
    assert made == len(whole) == 2 * EVERY + 5 and all(map(math.isfinite, whole))
    path = tmp_path / "broken.safetensors"
    with pytest.raises(_Killed):
        _noisy_training(path, killed_at=2 * EVERY - 1)
    again, resumed, made = _noisy_training(path)
    assert made == EVERY + 5  # from the state after the first EVERY updates
    assert again == whole
    assert all(torch.equal(resumed[name], factors[name]) for name in factors)


def test_a_state_of_something_else_is_not_gone_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(_Killed):
        _noisy_training(path, killed_at=EVERY + 1)
    _, _, made = _noisy_training(path, of="another")
    assert made == 2 * EVERY + 5
    assert "is of another model, precision, device, data, settings or program" in caplog.text
