"""LoRA adapters and the overlays of guards on linear layers, for the rows that carry them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steering.engines.transformers.adapters.products import Carried, LowRankProducts
from steering.engines.transformers.adapters.settings import UnfitAdapter
from steering.engines.transformers.adapters.weights import (
    decoder_linears,
    linear_shapes,
    read_adapter,
)
from steering.hidden.overlays import LinearOverlay
from steering.offloaded import execution_device


class AdapterSeam:
    """The adapters of one model, by name, from the folders of each.

    Outside of `acting` the model has no hooks of them. Raises UnfitAdapter, in one line.
    """

    def __init__(self, model: Any, folders: Mapping[str, Path]) -> None:
        linears = decoder_linears(model)
        dtype = _dtype(model)
        adapters = {}
        for name, folder in folders.items():
            try:
                adapters[name] = read_adapter(folder, linears, dtype)
            except UnfitAdapter as error:
                raise UnfitAdapter(f"adapter {name} {error}") from None
        self._products = LowRankProducts(linears, adapters, execution_device(model), dtype)
        if not sees_rows(model, self._products.modules):
            raise UnfitAdapter(
                "an adapter changes layers that do not see a batch by rows (experts, routers): "
                "merge it into a checkpoint of its own"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._products

    def acting(self, carried: Sequence[str | None]) -> AbstractContextManager[None]:
        """Apply adapters to the forward inside, whose row `i` carries `carried[i]`, None for none.

        A forward in which no row carries one gets no hook.
        """
        return self._products.acting([() if name is None else (Carried(name),) for name in carried])


class OverlaySeam:
    """The overlays of a bank's guards on the linear layers of one model.

    Raises ValueError for an overlay that does not fit them.
    """

    def __init__(self, model: Any, overlays: Mapping[str, LinearOverlay]) -> None:
        self._overlays = overlays
        linears = decoder_linears(model) if overlays else {}
        shapes = linear_shapes(model) if overlays else {}
        for name, overlay in overlays.items():
            require_fit(name, overlay, shapes)
        factors = {name: overlay.factors for name, overlay in overlays.items()}
        self._products = LowRankProducts(linears, factors, execution_device(model), _dtype(model))
        if overlays and not sees_rows(model, self._products.modules):
            raise ValueError(
                "an overlay changes layers that do not see a batch by rows (experts, routers)"
            )

    def rereads(self, carried: Sequence[Carried]) -> bool:
        """Whether a row under these overlays has its whole prompt read again."""
        return any(self._overlays[each.name].rereads for each in carried)

    def acting(self, carried: Sequence[Sequence[Carried]]) -> AbstractContextManager[None]:
        """See `LowRankProducts.acting`."""
        return self._products.acting(carried)


def require_fit(name: str, overlay: LinearOverlay, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raise ValueError where an overlay does not fit linear layers of these shapes, (out, in)."""
    for path, factors in overlay.factors.items():
        if path not in shapes:
            raise ValueError(
                f"guard {name}: overlays {path!r:.120}, which is no linear layer in this model's "
                "decoder layers"
            )
        out, width = shapes[path]
        rank = len(factors.read)
        given = (factors.write.shape[0], factors.read.shape[1])
        if given != (out, width) or factors.write.shape[1] != rank:
            raise ValueError(
                f"guard {name}: its overlay of {path} is {given[0]} x {given[1]}, the layer is "
                f"{out} x {width}"
            )
        if rank > min(out, width):
            raise ValueError(
                f"guard {name}: its overlay of {path} has rank {rank}, more than the layer's "
                f"{min(out, width)}"
            )


@torch.inference_mode()
def sees_rows(model: Any, modules: Sequence[nn.Module]) -> bool:
    """Whether all `modules` see the rows of a batch: experts, for one, see the tokens that were
    sent to them."""
    seen: dict[int, set[tuple[int, ...]]] = {id(module): set() for module in modules}

    def note(module: nn.Module, inputs: Any) -> None:
        seen[id(module)].add(tuple(inputs[0].shape[:-1]))

    with _hooked(modules, note):
        ids = torch.zeros(2, 3, dtype=torch.long, device=execution_device(model))
        model(input_ids=ids, use_cache=False)
    return all(shapes == {(2, 3)} for shapes in seen.values())


@contextmanager
def _hooked(modules: Sequence[nn.Module], hook: Any) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _dtype(model: Any) -> torch.dtype:
    """Products of small matrices: never less precise than the sum that they are added to."""
    return torch.promote_types(torch.float32, model.dtype)
