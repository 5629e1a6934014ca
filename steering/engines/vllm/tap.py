"""The hidden seam in vLLM: an operator after decoder layers, through which a table senses and acts.

The residual stream of vLLM's decoder layers is two tensors, not yet added: the output of a layer,
and the residual. Guards sense their sum; changes are added to the first. torch.compile keeps the
operator opaque, and the operator finds its table through a number, so that a graph that was
compiled once serves every batch and every bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.utils.torch_utils import direct_register_custom_op

from steering.hidden.packed import PackedTable

OPERATOR = "vllm::inference_guard_tap"
"""The operator's name, as torch.compile knows it."""

_taps: list[Tap] = []


class Tap:
    """Hooks on a model's decoder layers that consult `table`; no-ops while it has nothing to do."""

    def __init__(self) -> None:
        self.table: PackedTable | None = None
        self.layers: set[int] = set()
        """The hooked layers."""
        self._number = len(_taps)
        _taps.append(self)

    def install(self, layers: Sequence[nn.Module], hooked: Sequence[int]) -> None:
        """Hook the layers with these indices. Before the model is compiled."""
        self.layers.update(hooked)
        for index in hooked:
            layers[index].register_forward_hook(self._hook(index))

    def _hook(self, layer: int) -> Any:
        number = self._number

        def hook(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
            hidden, residual = output
            torch.ops.vllm.inference_guard_tap(hidden, residual, number, layer)

        return hook

    def read(self, layer: int, hidden: Tensor, residual: Tensor) -> None:
        """The operator: let the table sense and act after `layer`."""
        table = self.table
        if table is None:
            return
        if table.senses and layer in table.bank.sense_layers:
            table.sense(layer, hidden, residual)
        if table.acts and layer in table.bank.act_layers:
            table.act(layer, hidden, residual)


def _tap(hidden: Tensor, residual: Tensor, tap: int, layer: int) -> None:
    _taps[tap].read(layer, hidden, residual)


def _fake(hidden: Tensor, residual: Tensor, tap: int, layer: int) -> None:
    return None


direct_register_custom_op("inference_guard_tap", _tap, ["hidden"], _fake)
