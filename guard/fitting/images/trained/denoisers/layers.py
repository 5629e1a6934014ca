"""The layers of a denoiser that erasers are trained on, by kind, found by structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from guard.errors import DataError
from guard.fitting.images.trained.denoisers.kinds import KINDS, Kind
from guard.fitting.overlays.base import is_served

if TYPE_CHECKING:  # it loads diffusers, which nothing here needs
    from steering.engines.diffusion.families import Family

_FEED_FORWARD = frozenset({"ff", "ff_context", "ffn", "mlp", "proj_mlp"})
_PROJECTIONS = frozenset({"proj_in", "proj_out"})
_CONVOLUTIONS = frozenset({"conv", "conv1", "conv2", "conv_shortcut"})


def layers_of(family: Family) -> dict[Kind, list[str]]:
    """The layers of each kind that overlays can act on, by their path in the denoiser. Joint
    attention of text and image counts as cross-attention."""
    denoiser: nn.Module = family.denoiser
    crossing = {name for name, _ in family.cross_attention()}
    attention = {
        path for path, module in denoiser.named_modules() if getattr(module, "to_q", None)
    } | crossing
    layers: dict[Kind, list[str]] = {kind: [] for kind in KINDS}
    for path, module in denoiser.named_modules():
        if is_served(module):
            for kind in _kinds(path, module, attention, crossing):
                layers[kind].append(path)
    return layers


def chosen(layers: dict[Kind, list[str]], kinds: Sequence[Kind]) -> list[str]:
    """The layers of these kinds, in the order of the denoiser. Raises DataError where a denoiser
    has none of them."""
    found = dict.fromkeys(layer for kind in kinds for layer in layers[kind])
    if not found:
        known = ", ".join(kind for kind in KINDS if layers[kind])
        raise DataError(
            f"the denoiser has no layers of the kind {' or '.join(kinds)} that can be overlaid: "
            f"give --layers of {known or 'another model'}"
        )
    return list(found)


def _kinds(path: str, module: nn.Module, attention: set[str], crossing: set[str]) -> list[Kind]:
    parts = path.split(".")
    within = next((p for p in _parents(parts) if p in attention), None)
    if within is not None:
        if within not in crossing:
            return ["self-attention"]
        return ["cross-attention", "queries"] if parts[-1] == "to_q" else ["cross-attention"]
    if _FEED_FORWARD & {*parts}:
        return ["feed-forward"]
    if len(parts) > 1 and parts[-1] in _PROJECTIONS:
        return ["projection"]
    if isinstance(module, nn.Conv2d) and len(parts) > 1 and parts[-1] in _CONVOLUTIONS:
        return ["convolution"]
    return []


def _parents(parts: Sequence[str]) -> list[str]:
    """The paths of all modules around one, the nearest first."""
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
