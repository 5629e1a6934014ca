"""Hooks that overlay layers of a network, and the projections of the text in a denoiser.

These projections are `to_k` and `to_v` in cross-attention, and `add_k_proj` and `add_v_proj` in
joint attention (Stable Diffusion 3, Flux's double blocks). Flux's single blocks have one sequence
for text and image, and no projection of the text alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steering.engines.errors import Unfollowed, UnsupportedModel
from steering.hidden.rows import RowGuard
from steering.images.projection import Overlay, OverlayBank, Pairs
from steering.offloaded import execution_device

_CROSS, _JOINT = ("to_k", "to_v"), ("add_k_proj", "add_v_proj")


def text_projections(attention: Sequence[tuple[str, nn.Module]]) -> dict[str, nn.Linear]:
    """The text's projections in the modules of `Family.cross_attention`, by path in the denoiser.

    Raises ValueError for a projection that is fused with others or is not a plain linear layer:
    its replacement (adapters, quantised weights) may not run the layer's forward.
    """
    require_unfused(attention)
    projections: dict[str, nn.Linear] = {}
    for name, module in attention:
        joint = getattr(module, "add_k_proj", None) is not None
        if not joint and getattr(module, "pre_only", False):
            continue
        for part in _JOINT if joint else _CROSS:
            layer = _plain(f"{name}.{part}", getattr(module, part, None))
            assert isinstance(layer, nn.Linear)
            projections[f"{name}.{part}"] = layer
    return projections


def overlaid_layers(network: nn.Module, bank: OverlayBank) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers of `network` that the overlays of `bank` change, by path.

    Raises ValueError for a layer that the network does not have, that is not a plain linear or
    convolution layer, or that has another shape.
    """
    layers = {}
    for name in bank.layers:
        try:
            module = network.get_submodule(name)
        except AttributeError:
            raise ValueError(
                f"the overlay is of other projections than the model's: {name}"
            ) from None
        layer = _plain(name, module)
        bank.require_fit(name, layer)
        layers[name] = layer
    return layers


def require_plain(name: str, network: nn.Module, path: str) -> None:
    """Raise UnsupportedModel for a layer that exists but cannot be overlaid."""
    try:
        module = network.get_submodule(path)
    except AttributeError:
        return
    _plain(name, module)


def require_unfused(attention: Sequence[tuple[str, nn.Module]]) -> None:
    """Raise UnsupportedModel for fused projections, with which the separate layers do not run."""
    for name, module in attention:
        if getattr(module, "fused_projections", False):
            raise UnsupportedModel(
                f"{name} has fused projections, which cannot be overlaid: load the model without "
                "fuse_qkv_projections"
            )


def _plain(name: str, layer: Any) -> nn.Linear | nn.Conv2d:
    if type(layer) not in (nn.Linear, nn.Conv2d):
        raise UnsupportedModel(
            f"{name} is a {type(layer).__name__}, not a plain linear layer, and cannot be overlaid:"
            " merge or remove the adapters, and load the model without quantisation"
        )
    if type(layer.weight) is not nn.Parameter or not layer.weight.is_floating_point():
        raise UnsupportedModel(
            f"{name} has quantised weights and cannot be overlaid: load the model without "
            "quantisation"
        )
    plain: nn.Linear | nn.Conv2d = layer
    return plain


class OverlaySeam:
    """Overlays on the layers of one network, for the rows that `carry` names. A `RowSeam`.

    The layers of the overlays are hooked; the hooks do nothing in a forward without an overlaid
    row. Not thread-safe.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._bank = OverlayBank()
        self._handles: list[Any] = []
        self._table: Tensor | None = None
        self._pairs: Mapping[str, Pairs] = {}
        self._rows = 0
        self._reached: set[str] = set()
        self._coordinates_of: dict[int, tuple[Tensor, Tensor]] = {}
        """Group → the states that its layers were given, and their coordinates."""

    @property
    def device(self) -> torch.device:
        """The device of the network, where its rows and tables are."""
        return execution_device(self._network)

    def install(self, overlays: Mapping[str, Overlay]) -> None:
        """Replace the overlays, by guard name. Raises ValueError, and changes nothing, for layers
        that the network does not have."""
        bank = OverlayBank(overlays, self.device)
        layers = overlaid_layers(self._network, bank)
        self.remove()
        self._bank = bank
        for name, layer in layers.items():
            self._handles.append(layer.register_forward_hook(self._hook(name)))
        if layers:
            self._handles.append(self._network.register_forward_hook(self._after_forward))

    def remove(self) -> None:
        """Take every hook off the network."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._bank, self._table = OverlayBank(), None
        self.leave()

    def __contains__(self, name: str) -> bool:
        return name in self._bank

    @property
    def names(self) -> tuple[str, ...]:
        return self._bank.names

    def carry(self, rows: Sequence[Sequence[RowGuard]], source: Tensor) -> None:
        """Overlay the network's rows by these guards; row i of the network is one of
        `rows[source[i]]`.

        The conditional, unconditional and extra rows of a request have the same overlays: one
        edited model runs the request. Guards without an overlay in this network are ignored.
        """
        overlaying = [[guard for guard in row if guard.name in self._bank] for row in rows]
        self._table = None
        if any(overlaying):
            self._table = self._bank.strengths(overlaying, source.device)[source]

    def enter(self, rows: Tensor) -> None:
        """See RowSeam."""
        self.leave()
        if self._table is not None:
            self._pairs, self._rows = self._bank.pairs(self._table[rows]), len(rows)

    @contextmanager
    def every_forward(self, rows: Tensor) -> Iterator[None]:
        """Enter each forward of the network inside the context, of these rows."""
        handle = self._network.register_forward_pre_hook(lambda *_: self.enter(rows))
        try:
            yield
        finally:
            handle.remove()
            self.leave()

    def leave(self) -> None:
        """See RowSeam."""
        self._pairs = {}
        self._reached.clear()
        self._coordinates_of.clear()

    def _hook(self, layer: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            pairs = self._pairs.get(layer)
            if pairs is None:
                return None
            states = inputs[0]
            if len(states) != self._rows:
                raise Unfollowed(f"{layer} does not hold the rows of its forward: {states.shape}")
            self._reached.add(layer)
            coordinates = self._coordinates(layer, states, pairs, module)
            return self._bank.added(layer, output, coordinates, pairs, module)

        return hook

    def _coordinates(self, layer: str, states: Tensor, pairs: Pairs, module: nn.Module) -> Tensor:
        """The coordinates of `states`, computed once for all layers of a group that are given the
        same tensor."""
        group = self._bank.group(layer)
        cached = self._coordinates_of.get(group)
        if cached is None or cached[0] is not states:
            cached = states, self._bank.coordinates(layer, states, pairs, module)
            self._coordinates_of[group] = cached
        return cached[1]

    def _after_forward(self, *_forward: Any) -> None:
        """Raise Unfollowed if a forward bypassed a hook (adapters loaded since, skipped layers):
        it was not overlaid."""
        if missed := sorted({*self._pairs} - self._reached):
            raise Unfollowed(f"{missed[0]} was not run in a forward that it is overlaid in")
        self.leave()


@contextmanager
def recorded(
    attention: Sequence[tuple[str, nn.Module]],
) -> Iterator[dict[str, list[Tensor]]]:
    """The inputs of every projection of the text in the forwards inside the context: layer →
    `[rows, tokens, in]`, one a forward. Layers that are given the same tensor share it here."""
    inputs_of: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Any:
        def record(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            inputs_of.setdefault(name, []).append(inputs[0])

        return record

    handles = [
        layer.register_forward_pre_hook(hook(name))
        for name, layer in text_projections(attention).items()
    ]
    try:
        yield inputs_of
    finally:
        for handle in handles:
            handle.remove()
