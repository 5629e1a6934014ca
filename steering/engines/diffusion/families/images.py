"""The image side of a pipeline: noise, packed latents, and its autoencoder in both directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class LatentImages(ABC):
    """Latents and images of `height` by `width` of `pipeline`."""

    pipeline: Any
    height: int
    width: int

    # -- the parts of a family --------------------------------------------------------------------

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one row's latents, unpacked: `[channels, (frames,) height, width]`."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the denoiser."""

    @abstractmethod
    def _image(self, latents: Tensor) -> NDArray[np.float32]:
        """In 0..1, `[rows, height, width, 3]`, for videos `[rows, frames, height, width, 3]`."""

    def packed(self, latents: Tensor) -> Tensor:
        """Latents `[rows, channels, (frames,) height, width]` as the denoiser takes them."""
        return latents

    def unpacked(self, latents: Tensor) -> Tensor:
        """The inverse of `packed`."""
        return latents

    # -- shared by all families -------------------------------------------------------------------

    @property
    def autoencoder(self) -> nn.Module:
        """The network that decodes latents to images."""
        autoencoder: nn.Module = self.pipeline.vae
        return autoencoder

    @property
    def channels(self) -> int:
        """The channels of unpacked latents."""
        return self.shape[0]

    def noise(self, seeds: Sequence[int], draw: int = 0) -> Tensor:
        """Unit noise `[rows, ...]`, float32, from one generator a row.

        Draw 0 is the initial noise of the pipeline, the next ones follow from the same generator.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        draws = [
            [torch.randn(self.shape, generator=g) for _ in range(draw + 1)] for g in generators
        ]
        return self.packed(torch.stack([row[draw] for row in draws])).to(self.device)

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Images `[rows, height, width, 3]`; videos `[rows, frames, height, width, 3]`."""
        # rounded as diffusers does when it converts to PIL
        return (self._image(latents) * 255).round().astype(np.uint8)

    def _decoder_input(self, latents: Tensor) -> Tensor:
        """Latents in the dtype and scale of the autoencoder."""
        vae = self.pipeline.vae
        scaled: Tensor = latents.to(vae.dtype) / vae.config.scaling_factor
        return scaled

    def _decoded(self, latents: Tensor) -> NDArray[np.float32]:
        """The images of latents in the scale of the autoencoder."""
        return self._pixels(self.pipeline.vae.decode(latents, return_dict=False)[0])

    def _pixels(self, images: Tensor) -> NDArray[np.float32]:
        """The output of the autoencoder in 0..1, `[rows, height, width, 3]`."""
        processor = self.pipeline.image_processor
        pixels: NDArray[np.float32] = processor.postprocess(images, output_type="np")
        return pixels

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """The latents of images `[rows, height, width, 3]` in 0..1, in the denoiser's scale.

        They are `[rows, channels, height, width]`, float32, the inverse of `decode` and unpacked.
        Of an autoencoder that returns a distribution they are its mode: nothing is random. Raises
        ValueError for images of another shape, and for a family that makes videos.
        """
        shape = (self.height, self.width, 3)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != shape:
            raise ValueError(f"images must be [rows, {shape}], not {tuple(pixels.shape)}")
        vae: Any = self.autoencoder
        signed = pixels.movedim(-1, 1).to(device=self.device, dtype=vae.dtype) * 2 - 1
        encoded = vae.encode(signed)
        distribution = getattr(encoded, "latent_dist", None)
        latents: Tensor = encoded.latents if distribution is None else distribution.mode()
        return self._scaled(latents).float()

    def _scaled(self, latents: Tensor) -> Tensor:
        """Latents of the autoencoder in the scale of the denoiser."""
        config: Any = self.autoencoder.config
        scaled: Tensor = (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor
        return scaled
