"""The stacked guards of one image model, by seam: one value that travels from plans to engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from steering.images.embedding import EmbeddingBank, EmbeddingGuards
from steering.images.guidance import GuidanceGuards
from steering.images.latent import LatentGuards
from steering.images.output import OutputBank, OutputGuards
from steering.images.projection import Overlay, OverlayGuards, component_of
from steering.methods import Seam
from steering.methods.stacking import MethodGuard, stacks_by_method


@dataclass(frozen=True)
class ImageStacks:
    """The stacks of each seam.

    `prompts` has every stack that reads prompts: those of the embedding seam, and those of
    `guidance` and of `overlays` (the guards' overlays by name), which act later. The stacks of
    `latents` write to the latents while an image is generated; those of `output` read the finished
    latents. Immutable; swap the whole value to change it.

    Raises ValueError for two guards of one name.
    """

    prompts: EmbeddingBank = field(default_factory=EmbeddingBank)
    guidance: tuple[GuidanceGuards, ...] = ()
    overlays: Mapping[str, Overlay] = field(default_factory=dict)
    latents: tuple[LatentGuards, ...] = ()
    output: OutputBank = field(default_factory=OutputBank)

    @classmethod
    def of(cls, guards: Sequence[MethodGuard], device: torch.device | str = "cpu") -> ImageStacks:
        """Of these guards, stacked by their methods. Raises ValueError for an invalid guard."""
        stacks = stacks_by_method(guards, device)

        def of(*seams: Seam) -> list[Any]:
            return [stack for method, stack in stacks if method.seam in seams]

        return cls.by_seam(
            # in the order of the configuration: a guard reads the result of the earlier ones
            reading=of("embedding", "guidance", "projection"),
            guidance=of("guidance"),
            overlaying=of("projection"),
            latents=of("latent"),
            output=of("output"),
        )

    @classmethod
    def by_seam(
        cls,
        reading: Sequence[EmbeddingGuards] = (),
        *,
        guidance: Sequence[GuidanceGuards] = (),
        overlaying: Sequence[OverlayGuards] = (),
        latents: Sequence[LatentGuards] = (),
        output: Sequence[OutputGuards] = (),
    ) -> ImageStacks:
        """Of stacks by seam: `reading` has all stacks that read prompts."""
        overlays = {
            name: overlay
            for stack in overlaying
            for name, overlay in zip(stack.names, stack.overlays, strict=True)
        }
        encoding = frozenset(
            name for name, overlay in overlays.items() if any(map(component_of, overlay.writes))
        )
        return cls(
            prompts=EmbeddingBank(reading, encoding),
            guidance=tuple(guidance),
            overlays=overlays,
            latents=tuple(latents),
            output=OutputBank(output),
        )

    @cached_property
    def late(self) -> frozenset[str]:
        """The names of the guards that read latents instead of the prompt."""
        names = [name for stack in self.latents for name in stack.names]
        return frozenset([*names, *self.output.names])

    def overlays_of(self, component: str) -> dict[str, Overlay]:
        """The overlays of one component, "" for the denoiser, by guard; guards without any are left
        out."""
        parts = {name: overlay.among(component) for name, overlay in self.overlays.items()}
        return {name: overlay for name, overlay in parts.items() if overlay.writes}

    @property
    def components(self) -> frozenset[str]:
        """The text encoders that guards overlay."""
        layers = (layer for overlay in self.overlays.values() for layer in overlay.writes)
        return frozenset(component_of(layer) for layer in layers) - {""}
