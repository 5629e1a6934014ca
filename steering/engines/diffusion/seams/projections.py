"""Hooks that overlay layers of a network, and the projections of the text in a denoiser.

Those are `to_k` and `to_v` in cross-attention; where text and image attend to both (Stable
Diffusion 3, Flux's double blocks) `add_k_proj` and `add_v_proj`. Flux's single blocks have one
sequence for both and no projection of the text's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from steering.engines.errors import Unfollowed, UnsupportedModel
from steering.hidden.rows import RowGuard
from steering.images.projection import Overlay, OverlayBank, Pairs

_CROSS, _JOINT = ("to_k", "to_v"), ("add_k_proj", "add_v_proj")


def text_projections(attention: Sequence[tuple[str, nn.Module]]) -> dict[str, nn.Linear]:
    """The text's projections in what `Family.cross_attention` gives, by their denoiser's names.

    Raises ValueError for one that is fused with others, or is no plain linear layer: what stands
    in its place (adapters, quantised weights) may not go through the layer's own forward.
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
    """The layers of `network` that the overlays of `bank` are on, by path.

    Raises ValueError for a layer that the network does not have, that is no plain linear or
    convolution layer, or that is of another shape.
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
    """Raise UnsupportedModel for a layer that is there, and cannot be overlaid."""
    try:
        module = network.get_submodule(path)
    except AttributeError:
        return
    _plain(name, module)


def require_unfused(attention: Sequence[tuple[str, nn.Module]]) -> None:
    """Raise ValueError for attention whose projections are fused: its own are not run then."""
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
            f"{name} has quantised weights and cannot be overlaid: load the model without"
        )
    found: nn.Linear | nn.Conv2d = layer
    return found


class OverlaySeam:
    """Overlays on the layers of one network, for the rows that `carry` names. A `RowSeam`.

    The bank's layers are hooked while it has guards; a forward none of whose rows carries one goes
    by without work. Not thread-safe.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._bank = OverlayBank()
        self._handles: list[Any] = []
        self._table: Tensor | None = None
        self._pairs: Mapping[str, Pairs] = {}
        self._rows = 0
        self._met: set[str] = set()
        self._read: dict[int, tuple[Tensor, Tensor]] = {}

    def install(self, overlays: Mapping[str, Overlay]) -> None:
        """Overlay these from now on, by guard. Raises ValueError, and installs nothing, where they
        are not of the network's layers."""
        device = next(self._network.parameters()).device
        bank = OverlayBank(overlays, device)
        layers = overlaid_layers(self._network, bank)
        self.remove()
        self._bank = bank
        for name, layer in layers.items():
            self._handles.append(layer.register_forward_hook(self._hook(name)))
        if layers:
            self._handles.append(self._network.register_forward_hook(self._behind))

    def remove(self) -> None:
        """Take every hook off again: the network is as it was."""
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
        """Let the rows that are run be overlaid by these guards; run row i is of `rows[source[i]]`.

        Conditional, unconditional and extra rows of a request alike: one edited model runs it.
        Guards without an overlay here are left out.
        """
        here = [[guard for guard in row if guard.name in self._bank] for row in rows]
        self._table = None
        if any(here):
            self._table = self._bank.strengths(here, source.device)[source]

    def enter(self, rows: Tensor) -> None:
        """The forward that follows holds these, `[n]`, of the rows that are run."""
        self.leave()
        if self._table is not None:
            self._pairs, self._rows = self._bank.pairs(self._table[rows]), len(rows)

    def leave(self) -> None:
        """No forward that follows is the seam's business."""
        self._pairs = {}
        self._met.clear()
        self._read.clear()

    def _hook(self, layer: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            pairs = self._pairs.get(layer)
            if pairs is None:
                return None
            states = inputs[0]
            if len(states) != self._rows:
                raise Unfollowed(f"{layer} does not hold the rows of its forward: {states.shape}")
            self._met.add(layer)
            coordinates = self._coordinates(layer, states, pairs, module)
            return self._bank.added(layer, output, coordinates, pairs, module)

        return hook

    def _coordinates(self, layer: str, states: Tensor, pairs: Pairs, module: nn.Module) -> Tensor:
        """Read once for all layers of a group that are given the very same states."""
        group = self._bank.group(layer)
        known = self._read.get(group)
        if known is None or known[0] is not states:
            known = states, self._bank.coordinates(layer, states, pairs, module)
            self._read[group] = known
        return known[1]

    def _behind(self, *_forward: Any) -> None:
        """A forward that went past a hook (adapters loaded since, layers that are skipped) was not
        overlaid."""
        if missed := sorted({*self._pairs} - self._met):
            raise Unfollowed(f"{missed[0]} was not run in a forward that it is overlaid in")
        self.leave()


@contextmanager
def recorded(
    attention: Sequence[tuple[str, nn.Module]],
) -> Iterator[dict[str, list[Tensor]]]:
    """What every projection of the text reads in the forwards inside: layer → `[rows, tokens, in]`,
    one a forward. Layers that are given the very same tensor have the very same one here."""
    found: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Any:
        def record(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found.setdefault(name, []).append(inputs[0])

        return record

    handles = [
        layer.register_forward_pre_hook(hook(name))
        for name, layer in text_projections(attention).items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
