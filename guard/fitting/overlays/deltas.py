"""Low-rank factors on chosen layers that can be trained, while the weights stay frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guard.errors import DataError
from guard.fitting.overlays.base import Base, is_served
from guard.fitting.overlays.factors import Factors


class Deltas:
    """Trainable factors `ΔW = write · read` of layers of a base, a *block* for each layer.

    They act only inside `on`; outside it the base's outputs are its own. `read` begins as noise,
    `write` at zero, as in LoRA (arXiv 2106.09685).

    Raises DataError for a layer that cannot be overlaid, for none, and for a rank over a layer's.
    """

    def __init__(self, base: Base, layers: Sequence[str], rank: int, seed: int = 0) -> None:
        self._modules = {layer: base.module(layer) for layer in layers}
        unfit = next((name for name, m in self._modules.items() if not is_served(m)), None)
        if unfit is not None or not layers:
            raise DataError(f"no overlay can be trained on {unfit or 'no layer'}")
        _require_rank(self._modules, rank)
        generator = torch.Generator().manual_seed(seed)
        self._read, self._write = {}, {}
        for layer, module in self._modules.items():
            weight: Tensor = module.weight  # type: ignore[assignment]
            read = torch.randn(rank, *weight.shape[1:], generator=generator)
            read /= math.sqrt(weight[0].numel())
            self._read[layer] = read.to(weight.device).requires_grad_()
            self._write[layer] = torch.zeros(len(weight), rank, device=weight.device)
            self._write[layer].requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        return [*self._read.values(), *self._write.values()]

    @property
    def zeroed(self) -> list[str]:
        """The layers whose block is zero: an artifact has nothing of them."""
        return [layer for layer, read in self._read.items() if not bool(read.any())]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Add the changes to the outputs of the layers inside the context. Other hooks of a layer
        are given the changed output, whenever they were registered."""
        with ExitStack() as stack:
            for layer, module in self._modules.items():
                handle = module.register_forward_hook(self._hook(layer), prepend=True)
                stack.callback(handle.remove)
            yield

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        """Shorten each block, the vector of all its values, by `amount`; one that is no longer than
        that becomes zero. It is the proximal step of `amount · Σ √(‖read‖² + ‖write‖²)`."""
        for layer, read in self._read.items():
            write = self._write[layer]
            size = (read.square().sum() + write.square().sum()).sqrt()
            share = (1.0 - amount / size.clamp(min=1e-30)).clamp(min=0.0)
            read.mul_(share)
            write.mul_(share)

    @torch.no_grad()
    def clear(self, layers: Sequence[str]) -> None:
        """Make these blocks zero."""
        for layer in layers:
            self._read[layer].zero_()
            self._write[layer].zero_()

    def factors(self) -> Factors:
        """The factors as they are now; layers whose change is zero are left out.

        Raises DataError where all are, or where one is not finite.
        """
        changed = [layer for layer, write in self._write.items() if bool(write.any())]
        tensors = [
            tensor for layer in changed for tensor in (self._read[layer], self._write[layer])
        ]
        if not changed and self.zeroed:
            raise DataError(
                "the penalty has driven every layer's block to zero: give a smaller --penalty"
            )
        if not changed or not all(bool(tensor.isfinite().all()) for tensor in tensors):
            what = "has left every weight as it was" if not changed else "has met NaN"
            raise DataError(f"the training {what}: try another rate or more steps")
        return Factors(
            {layer: self._read[layer].detach().cpu() for layer in changed},
            {layer: self._write[layer].detach().cpu().T.contiguous() for layer in changed},
        )

    def state(self) -> dict[str, Tensor]:
        """See `guard.fitting.resuming.Resumable`."""
        named = (("read", self._read), ("write", self._write))
        return {
            f"{side}.{layer}": tensor.detach() for side, of in named for layer, tensor in of.items()
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `guard.fitting.resuming.Resumable`."""
        for side, of in (("read", self._read), ("write", self._write)):
            for layer, tensor in of.items():
                tensor.copy_(state[f"{side}.{layer}"])

    def _hook(self, layer: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            read, write = self._read[layer], self._write[layer]
            states = inputs[0].float()
            if isinstance(module, nn.Conv2d):
                shape = (module.stride, module.padding, module.dilation)
                read_states = F.conv2d(states, read, None, *shape)  # type: ignore[arg-type]
                change = F.conv2d(read_states, write[..., None, None])
            else:
                change = F.linear(F.linear(states, read), write)
            return (output.float() + change).to(output.dtype)

        return add


def _require_rank(modules: Mapping[str, nn.Module], rank: int) -> None:
    ranks = {}
    for layer, module in modules.items():
        weight: Tensor = module.weight  # type: ignore[assignment]
        ranks[layer] = min(len(weight), weight[0].numel())
    smallest = min(ranks, key=lambda layer: ranks[layer])
    if rank > ranks[smallest]:
        raise DataError(
            f"a rank of {rank} is larger than that of {smallest}, {ranks[smallest]}: give a "
            f"--rank of {ranks[smallest]} at most"
        )
