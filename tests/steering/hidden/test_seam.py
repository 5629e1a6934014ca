"""Hooks leave no trace: idle they pass the layer's object on, removed they are gone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.hidden.seam import HiddenSeam
from steering.hidden.table import Table
from steering.methods.steer import bank_of
from tests.steering.tiny import WIDTH, random_guard


class Layer(nn.Module):
    """A decoder layer that remembers the very object it has returned."""

    def __init__(self, *, in_tuple: bool) -> None:
        super().__init__()
        self.in_tuple = in_tuple
        self.returned: Any = None

    def forward(self, hidden: Tensor) -> Any:
        fresh = hidden + 1.0
        self.returned = (fresh, "cache") if self.in_tuple else fresh
        return self.returned


@pytest.fixture(params=[True, False], ids=["tuple", "tensor"])
def layers(request: pytest.FixtureRequest) -> list[Layer]:
    return [Layer(in_tuple=request.param) for _ in range(4)]


def table_of(bank: HiddenBank, threshold: float) -> Table:
    table = Table(bank, 2)
    table.add(0, [RowGuard("guard", threshold=threshold, strength=1.0)])
    table.add(1, [])
    return table


def run(layers: list[Layer], hidden: Tensor) -> list[Any]:
    outputs = []
    for layer in layers:
        outputs.append(layer(hidden))
        hidden = outputs[-1][0] if isinstance(outputs[-1], tuple) else outputs[-1]
    return outputs


def untouched(layers: list[Layer], outputs: list[Any]) -> list[bool]:
    return [output is layer.returned for layer, output in zip(layers, outputs, strict=True)]


def test_without_a_table_hooks_pass_the_layers_object_on(layers: list[Layer]) -> None:
    bank = bank_of([random_guard()])
    HiddenSeam(layers).install(bank.layers)
    assert all(untouched(layers, run(layers, torch.randn(2, 3, WIDTH))))


def test_a_silent_table_passes_the_layers_object_on(layers: list[Layer]) -> None:
    bank = bank_of([random_guard()])
    seam = HiddenSeam(layers)
    seam.install(bank.layers)
    table = table_of(bank, threshold=1e9)
    table.begin(slice(0, 2), torch.ones(2, 3, dtype=torch.bool))
    with seam.consulting(table):
        outputs = run(layers, torch.randn(2, 3, WIDTH))
    assert all(untouched(layers, outputs))
    assert table.readings(0)["guard"].score > 0, "the hooks should sense"


def test_a_fired_guard_replaces_the_states_of_its_acting_layers_only(layers: list[Layer]) -> None:
    bank = bank_of([random_guard(sense=(1,), act=(1, 3))])
    seam = HiddenSeam(layers)
    seam.install(bank.layers)
    table = table_of(bank, threshold=-1.0)
    table.begin(slice(0, 2), torch.ones(2, 3, dtype=torch.bool))
    with seam.consulting(table):
        outputs = run(layers, torch.randn(2, 3, WIDTH))
    assert untouched(layers, outputs) == [True, False, True, False]
    for output, layer in zip(outputs, layers, strict=True):
        if isinstance(output, tuple):
            assert output[1] == "cache"
            output, before = output[0], layer.returned[0]
        else:
            before = layer.returned
        assert torch.equal(output[:, :-1], before[:, :-1])
        assert torch.equal(output[1], before[1])
    assert all(untouched(layers, run(layers, torch.randn(2, 3, WIDTH)))), (
        "the table is no longer consulted"
    )


def test_consulting_ends_with_an_exception_too(layers: list[Layer]) -> None:
    bank = bank_of([random_guard()])
    seam = HiddenSeam(layers)
    seam.install(bank.layers)
    table = table_of(bank, threshold=-1.0)
    table.begin(slice(0, 2), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="boom"), seam.consulting(table):
        raise RuntimeError("boom")
    assert all(untouched(layers, run(layers, torch.randn(2, 3, WIDTH))))


def test_removed_hooks_leave_the_modules_as_they_were(layers: list[Layer]) -> None:
    before = [dict(layer.__dict__) for layer in layers]
    foreign = layers[2].register_forward_hook(lambda *_: None)
    seam = HiddenSeam(layers)
    seam.install([0, 2])
    assert [len(layer._forward_hooks) for layer in layers] == [1, 0, 2, 0]
    seam.install([1, 2])
    assert [len(layer._forward_hooks) for layer in layers] == [0, 1, 2, 0], "replaces, not adds"
    seam.remove()
    assert [len(layer._forward_hooks) for layer in layers] == [0, 0, 1, 0], "leaves foreign hooks"
    foreign.remove()
    for layer, attributes in zip(layers, before, strict=True):
        assert layer.__dict__.keys() == attributes.keys()
        assert "forward" not in layer.__dict__
