"""Checks that the stacked guards of a seam fit one pipeline, before anything is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from steering.engines.diffusion.seams.attention import require_probes
from steering.engines.diffusion.seams.projections import (
    overlaid_layers,
    require_plain,
    require_unfused,
)
from steering.images.conditioning import Conditioning
from steering.images.embedding import EmbeddingGuards
from steering.images.guidance import GuidanceGuards, WindowedGuards
from steering.images.latent import LatentGuards
from steering.images.output import OutputGuards
from steering.images.projection import OverlayBank, OverlayGuards, component_of, path_of
from steering.images.stacks import ImageStacks
from steering.methods import Seam


class GuardedPipeline(Protocol):
    """The parts of a family that guards depend on: see `steering.engines.diffusion.families`."""

    @property
    def encoders(self) -> Mapping[str, nn.Module]: ...

    @property
    def denoiser(self) -> nn.Module: ...

    def cross_attention(self) -> Sequence[tuple[str, nn.Module]]: ...

    @property
    def autoencoder(self) -> nn.Module: ...

    @property
    def networks(self) -> Mapping[str, nn.Module]: ...

    @property
    def readable(self) -> Mapping[str, nn.Module]: ...

    @property
    def channels(self) -> int: ...

    def encode(self, prompts: Sequence[str]) -> Conditioning: ...


def require_fit(seam: Seam, stack: Any, pipeline: GuardedPipeline, text: Conditioning) -> None:
    """Raise ValueError where a stack of that seam does not fit the pipeline.

    `text` is the conditioning of any one prompt.
    """
    _CHECKS[seam](stack, pipeline, text)


def require_supported(seam: Seam, stack: Any, pipeline: GuardedPipeline) -> None:
    """Raise UnsupportedModel where the pipeline, as it was loaded, cannot take guards of that seam:
    adapters, fused or quantised layers. A fingerprint would only say that the model differs.
    """
    if seam != "projection":
        return
    layers = {layer for overlay in stack.overlays for layer in overlay.writes}
    denoiser = {layer for layer in layers if not component_of(layer)}
    if denoiser:
        require_unfused(pipeline.cross_attention())
    for layer in sorted(layers):
        network = pipeline.encoders.get(component_of(layer), pipeline.denoiser)
        require_plain(layer, network, path_of(layer))


def _prompt(stack: EmbeddingGuards, _pipeline: GuardedPipeline, text: Conditioning) -> None:
    """Sense and act once on the conditioning of a prompt."""
    score = torch.zeros(text.rows, len(stack.names), device=_device(text))
    try:
        with torch.no_grad():
            stack.sense(text)
            stack.act(text, score == 0, score, score + 1)
    except Exception as error:  # some guards use other libraries than torch, with other errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"it does not fit the output of the model's encoders ({reason})"
        ) from error


def _guidance(stack: GuidanceGuards, pipeline: GuardedPipeline, text: Conditioning) -> None:
    _prompt(stack, pipeline, text)
    if isinstance(stack, WindowedGuards) and len(stack.windows) != len(stack.names):
        raise ValueError(f"it has {len(stack.windows)} windows for {len(stack.names)} guards")
    if stack.conditions is None:
        return
    if stack.conditions.rows != stack.per_guard * len(stack.names):
        raise ValueError(f"it has {stack.conditions.rows} conditions, not {stack.per_guard} each")
    for name, states in text.states.items():
        conditions = stack.conditions.states
        if name not in conditions or conditions[name].shape[1:] != states.shape[1:]:
            raise ValueError(f"its concept is not of the shape of the model's stream {name!r}")


def _overlays(stack: OverlayGuards, pipeline: GuardedPipeline, text: Conditioning) -> None:
    stacks = ImageStacks.by_seam([stack], overlaying=[stack])
    if denoiser := stacks.overlays_of(""):
        overlaid_layers(pipeline.denoiser, OverlayBank(denoiser))
    for component in sorted(stacks.components):
        if component not in pipeline.encoders:
            known = ", ".join(pipeline.encoders)
            raise ValueError(f"the model has no text encoder {component!r}, but {known}")
        overlays = OverlayBank(stacks.overlays_of(component))
        overlaid_layers(pipeline.encoders[component], overlays)
    _prompt(stack, pipeline, text)


def _latents(stack: LatentGuards, pipeline: GuardedPipeline, text: Conditioning) -> None:
    _channels(stack, pipeline, text)
    require_probes(pipeline.readable, [probe for probes in stack.probes for probe in probes])


def _channels(
    stack: LatentGuards | OutputGuards, pipeline: GuardedPipeline, _text: Conditioning
) -> None:
    if stack.channels != pipeline.channels:
        raise ValueError(
            f"takes latents of {stack.channels} channels, the model's have {pipeline.channels}"
        )


_CHECKS: Mapping[Seam, Callable[[Any, GuardedPipeline, Conditioning], None]] = {
    "embedding": _prompt,
    "guidance": _guidance,
    "projection": _overlays,
    "latent": _latents,
    "output": _channels,
}


def _device(text: Conditioning) -> torch.device:
    states: Tensor = next(iter(text.states.values()))
    return states.device
