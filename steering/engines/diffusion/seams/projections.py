"""Where a denoiser projects what the text says, and the hooks that overlay those projections.

In cross-attention these are `to_k` and `to_v`; where text and image attend to both (Stable
Diffusion 3, Flux's double blocks) `add_k_proj` and `add_v_proj`. Flux's single blocks have one
sequence for both and no projection of the text's own: nothing is overlaid there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from steering.engines.transformers.attachment import Unfollowed
from steering.hidden.rows import RowGuard
from steering.images.projection import OverlayBank, Pairs, pairs_of

_CROSS, _JOINT = ("to_k", "to_v"), ("add_k_proj", "add_v_proj")


def text_projections(attention: Sequence[tuple[str, nn.Module]]) -> dict[str, nn.Linear]:
    """The text's projections in what `Family.cross_attention` gives, by their denoiser's names.

    Raises ValueError for one that is fused with others, or is no plain linear layer: what stands
    in its place (adapters, quantised weights) may not go through the layer's own forward.
    """
    found = {}
    for name, module in attention:
        if getattr(module, "fused_projections", False):
            raise ValueError(
                f"{name} has fused projections, which cannot be overlaid: load the model without "
                "fuse_qkv_projections"
            )
        joint = getattr(module, "add_k_proj", None) is not None
        if not joint and getattr(module, "pre_only", False):
            continue
        for own in _JOINT if joint else _CROSS:
            found[f"{name}.{own}"] = _plain(f"{name}.{own}", getattr(module, own, None))
    return found


def overlaid_layers(
    attention: Sequence[tuple[str, nn.Module]], bank: OverlayBank
) -> dict[str, nn.Linear]:
    """`text_projections`, all of which the overlays of `bank` go onto. Raises ValueError."""
    layers = text_projections(attention)
    if strange := sorted({*layers} ^ {*bank.group_of}):
        raise ValueError(f"the overlay is of other projections than the model's: {strange[0]}")
    for name, layer in layers.items():
        if bank.widths(name) != (layer.in_features, layer.out_features):
            raise ValueError(f"the overlay of {name} is of other widths than the layer")
    return layers


def _plain(name: str, layer: Any) -> nn.Linear:
    if type(layer) is not nn.Linear:
        raise ValueError(
            f"{name} is a {type(layer).__name__}, not a plain linear layer, and cannot be overlaid:"
            " merge or remove the adapters, and load the model without quantisation"
        )
    if type(layer.weight) is not nn.Parameter or not layer.weight.is_floating_point():
        raise ValueError(
            f"{name} has quantised weights and cannot be overlaid: load the model without"
        )
    return layer


class ProjectionSeam:
    """Overlays on the projections of one denoiser, for the rows that `carry` names. A `RowSeam`.

    The bank's layers are hooked while it has guards; a forward none of whose rows carries one goes
    by without work. Not thread-safe.
    """

    def __init__(self, denoiser: nn.Module, attention: Sequence[tuple[str, nn.Module]]) -> None:
        self._denoiser, self._attention = denoiser, attention
        self._bank = OverlayBank()
        self._handles: list[Any] = []
        self._table: Tensor | None = None
        self._pairs: Pairs | None = None
        self._met: set[str] = set()
        self._read: dict[str, tuple[Tensor, Tensor]] = {}

    def install(self, bank: OverlayBank) -> None:
        """Overlay these from now on. Raises ValueError, and installs nothing, where they do not go
        onto the denoiser's projections."""
        layers = overlaid_layers(self._attention, bank) if len(bank) else {}
        self.remove()
        self._bank = bank
        for name, layer in layers.items():
            self._handles.append(layer.register_forward_hook(self._hook(name)))
        if layers:
            self._handles.append(self._denoiser.register_forward_hook(self._behind))

    def remove(self) -> None:
        """Take every hook off again: the denoiser is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._bank, self._table = OverlayBank(), None
        self.leave()

    def __contains__(self, name: str) -> bool:
        return name in self._bank

    def carry(self, rows: Sequence[Sequence[RowGuard]], source: Tensor) -> None:
        """Let the rows that are run be drawn with these guards; run row i is of `rows[source[i]]`.

        Conditional, unconditional and guiding rows of a request alike: one edited model draws it.
        """
        self._table = None
        if any(rows):
            self._table = self._bank.strengths(rows, source.device)[source]

    def enter(self, rows: Tensor) -> None:
        """The forward that follows holds these, `[n]`, of the rows that are run."""
        self.leave()
        self._pairs = None if self._table is None else pairs_of(self._table[rows])

    def leave(self) -> None:
        """No forward that follows is the seam's business."""
        self._pairs = None
        self._met.clear()
        self._read.clear()

    def _hook(self, layer: str) -> Any:
        group = self._bank.group_of[layer]

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            pairs = self._pairs
            if pairs is None:
                return None
            states = inputs[0]
            if states.ndim != 3 or len(states) != len(pairs.carried):
                raise Unfollowed(f"{layer} does not hold the rows of its forward: {states.shape}")
            self._met.add(layer)
            return self._bank.added(layer, output, self._coordinates(group, states, pairs), pairs)

        return hook

    def _coordinates(self, group: str, states: Tensor, pairs: Pairs) -> Tensor:
        """Read once for all layers that are given the very same states."""
        known = self._read.get(group)
        if known is None or known[0] is not states:
            known = states, self._bank.coordinates(group, states, pairs)
            self._read[group] = known
        return known[1]

    def _behind(self, *_forward: Any) -> None:
        """A forward that went past a hook (adapters loaded since, layers that are skipped) was not
        overlaid."""
        if self._pairs is not None and len(self._met) < len(self._bank.group_of):
            left = sorted({*self._bank.group_of} - self._met)
            raise Unfollowed(f"{left[0]} was not run in a forward that it is overlaid in")
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
