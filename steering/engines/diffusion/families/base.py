"""The common interface of the families of diffusers pipelines.

A family knows where a pipeline keeps its text embeddings, pooled embeddings, cross-attention and
latents. It runs the parts of the pipeline and its `encode_prompt`; nothing of them is copied.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steering.engines.diffusion.families.images import LatentImages
from steering.engines.diffusion.families.text import TextEncoding
from steering.images.conditioning import Conditioning
from steering.offloaded import execution_device


class Family(TextEncoding, LatentImages):
    """A loaded text-to-image or text-to-video pipeline. Not thread-safe.

    Images are `height` by `width`, None for the pipeline's default. Raises ValueError if the
    pipeline lacks a part, or cannot make images of that size.
    """

    separate_negative: ClassVar[bool] = False
    """Whether the pipeline encodes its negative prompt by a second `encode_prompt`."""
    default_guidance: str = "guidance_scale"
    """The argument of the pipeline's call that is its guidance."""
    frames: int | None = None
    """The frames of a video; None for a pipeline that makes images."""

    def __init__(self, pipeline: Any, *, height: int | None, width: int | None) -> None:
        for name in self._needs:
            if getattr(pipeline, name, None) is None:
                raise ValueError(f"{type(pipeline).__name__} without a {name} cannot be guarded")
        self.pipeline = pipeline
        default = self._default_size()
        self.height, self.width = height or default[0], width or default[1]
        if self.height % self._multiple or self.width % self._multiple:
            raise ValueError(
                f"{type(pipeline).__name__} makes images of sizes that are multiples of "
                f"{self._multiple}, not {self.width}x{self.height}"
            )

    # -- the parts of a family --------------------------------------------------------------------

    _needs: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """The network that runs at each step."""

    @property
    @abstractmethod
    def _multiple(self) -> int:
        """The number of which height and width must be multiples."""

    @abstractmethod
    def _default_size(self) -> tuple[int, int]: ...

    @abstractmethod
    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        """The denoiser's output for rows at timesteps `[rows]`, without classifier-free guidance.

        `guidance [rows]` is for networks that were distilled with it.
        """

    @abstractmethod
    def cross_attention(self) -> list[tuple[str, nn.Module]]:
        """The modules in which images attend to the text, by their name in the denoiser."""

    @property
    def distilled(self) -> bool:
        """Whether guidance is an input of the network, which then has no unconditional rows."""
        return False

    @property
    def refusal(self) -> str | None:
        """Why the engine cannot run the pipeline, though its prompts can be guarded."""
        return None

    def arrange(self, scheduler: Any, steps: int) -> None:
        """Set the timesteps of `scheduler` as the pipeline does."""
        scheduler.set_timesteps(steps)

    # -- shared by all families -------------------------------------------------------------------

    @property
    def scheduler(self) -> Any:
        return self.pipeline.scheduler

    @property
    def readable(self) -> Mapping[str, nn.Module]:
        """The layers whose attention can be read: those that project queries of the image alone
        and keys of the text alone. Not Flux's single-stream blocks, which project both at once."""
        return {
            name: module
            for name, module in self.cross_attention()
            if getattr(module, "add_k_proj", None) is not None
            or getattr(module, "is_cross_attention", False)
        }

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks with weights that take part in making an image."""
        denoiser: nn.Module = self.denoiser
        return {**self.encoders, "denoiser": denoiser, "autoencoder": self.autoencoder}

    @property
    def device(self) -> torch.device:
        return execution_device(self.denoiser)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.denoiser.parameters()).dtype
        return dtype

    @cached_property
    def defaults(self) -> tuple[int, float]:
        """Steps and guidance by default in the pipeline's call."""
        parameters = signature(type(self.pipeline).__call__).parameters
        steps, guidance = parameters["num_inference_steps"], parameters[self.default_guidance]
        return int(steps.default), float(guidance.default)

    @cached_property
    def max_tokens(self) -> int:
        """`max_sequence_length` by default in the pipeline's call."""
        return int(
            signature(type(self.pipeline).__call__).parameters["max_sequence_length"].default
        )
