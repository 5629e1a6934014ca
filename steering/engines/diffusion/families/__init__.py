"""One small adapter for each family of pipelines, by the class of the pipeline.

A subclass of such a class is refused: it may encode its prompts in another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steering.engines.diffusion.families.base import Family
from steering.engines.diffusion.families.flux import Flux
from steering.engines.diffusion.families.pixart import PixArt
from steering.engines.diffusion.families.readers import Reader
from steering.engines.diffusion.families.stable_diffusion import StableDiffusion
from steering.engines.diffusion.families.stable_diffusion_3 import StableDiffusion3
from steering.engines.diffusion.families.stable_diffusion_xl import StableDiffusionXL
from steering.engines.diffusion.families.wan import Wan

__all__ = ["FAMILIES", "Family", "Reader", "family_of"]

FAMILIES: Mapping[str, type[Family]] = {
    "FluxPipeline": Flux,
    "PixArtSigmaPipeline": PixArt,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "WanPipeline": Wan,
}
"""A new family takes one file, and one line here."""


def family_of(
    pipeline: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
) -> Family:
    """The adapter of a loaded pipeline; a size of None is the pipeline's default.

    Raises ValueError for an unknown class, a missing part, a size that the pipeline cannot make, or
    `frames` of a pipeline that makes images.
    """
    kind = type(pipeline).__name__
    if kind not in FAMILIES:
        raise ValueError(f"{kind} is not supported: there is {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[kind]
    if issubclass(family, Wan):
        return family(pipeline, height=height, width=width, frames=frames)
    if frames is not None:
        raise ValueError(f"{kind} makes images, not {frames} frames")
    return family(pipeline, height=height, width=width)
