"""Adapters on linear layers, for the rows of a forward that carry one.

For one row the layer gives `y = W x + B (A x)` with the factors of the row's adapter; `W` stays as
it is. The adapters of each layer are stacked, their ranks padded with zeros to the largest, and all
rows of a forward are one batched product: S-LoRA (Sheng et al. 2023, arXiv:2311.03285).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from steering.engines.transformers.adapters.settings import UnfitAdapter
from steering.engines.transformers.adapters.weights import LowRank, decoder_linears, read_adapter
from steering.offloaded import execution_device


@dataclass(frozen=True)
class _Layer:
    """`reads [adapters, in, rank]` and `writes [adapters, rank, out]`, zeros for an adapter that
    leaves the layer alone."""

    module: nn.Linear
    reads: Tensor
    writes: Tensor

    def added(self, rows: Tensor | None, slots: Tensor, states: Tensor, output: Tensor) -> Tensor:
        """`output [forward rows, tokens, out]` with the adapters of `slots [rows]` on the rows with
        the indices `rows`, None for all; the other rows keep their bits."""
        chosen = states if rows is None else states[rows]
        change = torch.bmm(
            torch.bmm(chosen.to(self.reads.dtype), self.reads[slots]), self.writes[slots]
        )
        if rows is None:
            return (output + change).to(output.dtype)
        return output.index_copy(0, rows, (output[rows] + change).to(output.dtype))


class AdapterSeam:
    """The adapters of one model, by name, from the folders of each.

    Outside of `acting` the model has no hooks of them. Raises UnfitAdapter, in one line.
    """

    def __init__(self, model: Any, folders: Mapping[str, Path]) -> None:
        self._slots = {name: slot for slot, name in enumerate(folders)}
        linears = decoder_linears(model)
        # products of small matrices: never less precise than the sum that they are added to
        dtype = torch.promote_types(torch.float32, model.dtype)
        adapters = []
        for name, folder in folders.items():
            try:
                adapters.append(read_adapter(folder, linears, dtype))
            except UnfitAdapter as error:
                raise UnfitAdapter(f"adapter {name} {error}") from None
        self._device = execution_device(model)
        self._layers = [
            _stacked(linear, [adapter.get(path) for adapter in adapters], self._device)
            for path, linear in linears.items()
            if any(path in adapter for adapter in adapters)
        ]
        self._require_rows(model)

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    @contextmanager
    def acting(self, carried: Sequence[str | None]) -> Iterator[None]:
        """Apply adapters to the forward inside, whose row `i` carries `carried[i]`, None for none.

        A forward in which no row carries one gets no hook.
        """
        rows = [row for row, name in enumerate(carried) if name is not None]
        if not rows:
            yield
            return
        slots = [self._slots[name] for name in carried if name is not None]
        places = torch.tensor([rows, slots], device=self._device)
        chosen = None if len(rows) == len(carried) else places[0]
        handles = [
            layer.module.register_forward_hook(partial(_hook, layer, chosen, places[1]))
            for layer in self._layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def _require_rows(self, model: Any) -> None:
        """Raise UnfitAdapter where an adapted layer does not see the rows of a batch: experts, for
        one, see the tokens that were sent to them."""
        seen: dict[int, set[tuple[int, ...]]] = {id(layer.module): set() for layer in self._layers}

        def note(module: nn.Module, inputs: Any) -> None:
            seen[id(module)].add(tuple(inputs[0].shape[:-1]))

        handles = [layer.module.register_forward_pre_hook(note) for layer in self._layers]
        try:
            ids = torch.zeros(2, 3, dtype=torch.long, device=self._device)
            model(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        if any(shapes != {(2, 3)} for shapes in seen.values()):
            raise UnfitAdapter(
                "an adapter changes layers that do not see a batch by rows (experts, routers): "
                "merge it into a checkpoint of its own"
            )


def _hook(
    layer: _Layer, rows: Tensor | None, slots: Tensor, _module: Any, inputs: Any, output: Tensor
) -> Tensor:
    return layer.added(rows, slots, inputs[0], output)


def _stacked(linear: nn.Linear, adapters: Sequence[LowRank | None], device: torch.device) -> _Layer:
    some = next(each for each in adapters if each is not None)
    rank = max(len(each.read) for each in adapters if each is not None)
    none = LowRank(torch.zeros_like(some.read), torch.zeros_like(some.write))
    every = [each or none for each in adapters]
    reads = torch.stack([pad(each.read, (0, 0, 0, rank - len(each.read))) for each in every])
    writes = torch.stack([pad(each.write, (0, rank - len(each.read))) for each in every])
    return _Layer(linear, reads.mT.contiguous().to(device), writes.mT.contiguous().to(device))
