"""A loaded image model for fitting: prompts in, conditionings or latents out.

Needs diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from guard.artifact import FittedModel
from guard.errors import ModelError
from guard.models.pipelines import load_pipeline
from guard.reporting.progress import Stages
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.seams.projections import recorded, text_projections
from steering.fingerprint import fingerprint
from steering.images.conditioning import Conditioning, concatenated

BATCH = 64
_IMAGES = 16


@dataclass(frozen=True)
class TextStates:
    """The inputs of the denoiser's text projections for some prompts, at one evaluation.

    `states` has `[prompts, tokens, in]` for each projection; projections with the same input share
    one tensor. `masks` are those of `Family.text_masks`.
    """

    evaluation: int
    states: Mapping[str, Tensor]
    masks: tuple[Tensor, ...]

    @property
    def rows(self) -> int:
        return len(self.masks[0])

    def select(self, rows: Tensor) -> TextStates:
        """These prompts, by index."""
        states = {name: tensor[rows] for name, tensor in self.states.items()}
        return TextStates(self.evaluation, states, tuple(mask[rows] for mask in self.masks))


class ImageModel:
    """A diffusion pipeline with the adapter of its family."""

    def __init__(self, family: Family, *, name: str, architecture: str) -> None:
        self.family = family
        self.name = name
        self._architecture = architecture

    @classmethod
    def load(cls, source: str, *, device: str = "auto") -> ImageModel:
        """Load an added model by name, a directory or a hub name. Raises ModelError."""
        try:
            pipeline: Any = load_pipeline(source, device=device)
            family = family_of(pipeline)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"model {source!r}: {error}") from error
        return cls(family, name=source, architecture=type(pipeline).__name__)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], stages: Stages | None = None) -> Conditioning:
        """The conditionings of `prompts`, one row each, on the CPU."""
        advance = stages("encoding prompts", len(prompts)) if stages else lambda _count: None
        parts = []
        for start in range(0, len(prompts), BATCH):
            part = self.family.encode(prompts[start : start + BATCH])
            parts.append(part.map(lambda tensor: tensor.cpu()))
            advance(part.rows)
        return concatenated(parts)

    @torch.no_grad()
    def generate_latents(
        self,
        prompts: Sequence[str],
        *,
        steps: int,
        guidance: float,
        seed: int = 0,
        advance: Callable[[int], None] = lambda _images: None,
    ) -> Tensor:
        """The finished latents of one image per prompt: see `DiffusionEngine.finished`.

        `[prompts, channels, (frames,) height, width]`, on the CPU. Prompt i has the seed
        `seed + i`. `advance` gets the number of images after each batch.
        """
        engine = DiffusionEngine(self.family, capacity=_IMAGES, forward=None)
        latents = []
        for start in range(0, len(prompts), _IMAGES):
            part = prompts[start : start + _IMAGES]
            engine.start(
                [
                    ImageStart(prompt, seed=seed + start + i, steps=steps, guidance=guidance)
                    for i, prompt in enumerate(part)
                ]
            )
            while not (complete := engine.step()):
                pass
            latents.append(engine.finished(complete).cpu())
            engine.reset()
            advance(len(part))
        return torch.cat(latents)

    @torch.no_grad()
    def text_states(
        self, prompts: Sequence[str], *, steps: int, evaluations: int
    ) -> Iterator[TextStates]:
        """The inputs of the text projections in the first `evaluations` of images of `steps` steps.

        They come batch by batch, and in each batch evaluation by evaluation. All images start from
        the same noise. Raises ValueError for projections that cannot be overlaid.
        """
        family = self.family
        engine = DiffusionEngine(family, capacity=_IMAGES, forward=None)
        for start in range(0, len(prompts), _IMAGES):
            part = list(prompts[start : start + _IMAGES])
            masks = family.text_masks(family.encode(part))
            engine.start([ImageStart(prompt, steps=steps, guidance=1.0) for prompt in part])
            for evaluation in range(evaluations):
                with recorded(family.cross_attention()) as inputs:
                    engine.step()
                states = {name: recordings[0] for name, recordings in inputs.items()}
                yield TextStates(evaluation, states, masks)
            engine.reset()

    def fitted_denoiser(self) -> FittedModel:
        """The model of an artifact that acts inside the denoiser."""
        attention = self.family.cross_attention()
        layers = text_projections(attention).values()
        return FittedModel(
            name=self.name,
            architecture=self._architecture,
            fingerprint=fingerprint(self.family.denoiser),
            layers=len(attention),
            width=max(layer.in_features for layer in layers),
        )

    def fitted_autoencoder(self) -> FittedModel:
        """The model of an artifact that was fitted on the autoencoder's latents."""
        return FittedModel(
            name=self.name,
            architecture=self._architecture,
            fingerprint=fingerprint(self.family.autoencoder),
            layers=1,
            width=self.family.channels,
        )

    def fitted_pipeline(self) -> FittedModel:
        """The model of an artifact that depends on the images of all networks together."""
        return FittedModel(
            name=self.name,
            architecture=self._architecture,
            fingerprint=fingerprint(nn.ModuleDict(self.family.networks)),
            layers=1,
            width=self.family.channels,
        )

    def fitted_model(self) -> FittedModel:
        """The model of an artifact that was fitted on the text encoders."""
        encoders = dict(self.family.encoders)
        text = self.encode([""])
        configs = [getattr(encoder, "config", None) for encoder in encoders.values()]
        depth = [getattr(config, "num_hidden_layers", 1) for config in configs]
        return FittedModel(
            name=self.name,
            architecture=self._architecture,
            fingerprint=fingerprint(nn.ModuleDict(encoders)),
            layers=max(depth),
            width=max(states.shape[-1] for states in text.states.values()),
        )
