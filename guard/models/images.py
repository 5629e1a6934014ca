"""A loaded image model, as fitting uses it: prompts in, conditionings or images out.

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
from guard.models.sources import resolve_source
from guard.reporting.progress import Stages
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.loading import load_pipeline
from steering.engines.diffusion.seams.projections import recorded, text_projections
from steering.fingerprint import fingerprint
from steering.images.conditioning import Conditioning, concatenated

BATCH = 64
_IMAGES = 16


@dataclass(frozen=True)
class TextStates:
    """What the denoiser's text projections read of some prompts at one evaluation.

    `states` has for each projection `[prompts, tokens, in]`, the same tensor for those that read
    the same; `masks` are `Family.text_masks`.
    """

    evaluation: int
    states: Mapping[str, Tensor]
    masks: tuple[Tensor, ...]


class ImageModel:
    """A pipeline with its family's adapter."""

    def __init__(self, family: Family, *, name: str, architecture: str) -> None:
        self.family = family
        self.name = name
        self._architecture = architecture

    @classmethod
    def load(cls, source: str, *, device: str = "auto") -> ImageModel:
        """From an added model's name, a directory or a hub name. Raises ModelError."""
        try:
            pipeline: Any = load_pipeline(resolve_source(source), device=device)
            family = family_of(pipeline)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"model {source!r}: {error}") from error
        return cls(family, name=source, architecture=type(pipeline).__name__)

    @torch.inference_mode()
    def read(self, prompts: Sequence[str], stages: Stages | None = None) -> Conditioning:
        """The conditionings of many prompts, on the CPU."""
        advance = stages("encoding prompts", len(prompts)) if stages else lambda _count: None
        parts = []
        for start in range(0, len(prompts), BATCH):
            part = self.family.encode(prompts[start : start + BATCH])
            parts.append(part.map(lambda tensor: tensor.cpu()))
            advance(part.rows)
        return concatenated(parts)

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        *,
        steps: int,
        guidance: float,
        seed: int = 0,
        tick: Callable[[int], None] = lambda _rows: None,
    ) -> Tensor:
        """The finished latents of an image of each prompt: see `DiffusionEngine.finished`.

        `[prompts, channels, (frames,) height, width]`, on the CPU; the first has the seed `seed`,
        the next the one behind it. `tick` is told of images that are done.
        """
        engine = DiffusionEngine(self.family, capacity=_IMAGES, forward=None)
        found = []
        for start in range(0, len(prompts), _IMAGES):
            part = prompts[start : start + _IMAGES]
            engine.start(
                [
                    ImageStart(prompt, seed=seed + start + i, steps=steps, guidance=guidance)
                    for i, prompt in enumerate(part)
                ]
            )
            while not (done := engine.step()):
                pass
            found.append(engine.finished(done).cpu())
            engine.reset()
            tick(len(part))
        return torch.cat(found)

    @torch.no_grad()
    def text_states(
        self, prompts: Sequence[str], *, steps: int, evaluations: int
    ) -> Iterator[TextStates]:
        """What the text projections read in the first `evaluations` of images of `steps` steps.

        Batch by batch, evaluation by evaluation; the images begin with the same noise. Raises
        ValueError for projections that cannot be overlaid.
        """
        family = self.family
        engine = DiffusionEngine(family, capacity=_IMAGES, forward=None)
        for start in range(0, len(prompts), _IMAGES):
            part = list(prompts[start : start + _IMAGES])
            masks = family.text_masks(family.encode(part))
            engine.start([ImageStart(prompt, steps=steps, guidance=1.0) for prompt in part])
            for evaluation in range(evaluations):
                with recorded(family.cross_attention()) as found:
                    engine.step()
                yield TextStates(evaluation, {n: each[0] for n, each in found.items()}, masks)
            engine.reset()

    def fitted_denoiser(self) -> FittedModel:
        """What an artifact says of the denoiser inside which it acts."""
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
        """What an artifact says of the autoencoder whose latents it was fitted on."""
        return FittedModel(
            name=self.name,
            architecture=self._architecture,
            fingerprint=fingerprint(self.family.autoencoder),
            layers=1,
            width=self.family.channels,
        )

    def fitted_pipeline(self) -> FittedModel:
        """What an artifact says of all networks together, where it depends on what they draw."""
        return FittedModel(
            name=self.name,
            architecture=self._architecture,
            fingerprint=fingerprint(nn.ModuleDict(self.family.networks)),
            layers=1,
            width=self.family.channels,
        )

    def fitted_model(self) -> FittedModel:
        """What an artifact says of the encoders that it was fitted on."""
        encoders = dict(self.family.encoders)
        text = self.read([""])
        configs = [getattr(encoder, "config", None) for encoder in encoders.values()]
        depth = [getattr(config, "num_hidden_layers", 1) for config in configs]
        return FittedModel(
            name=self.name,
            architecture=self._architecture,
            fingerprint=fingerprint(nn.ModuleDict(encoders)),
            layers=max(depth),
            width=max(states.shape[-1] for states in text.states.values()),
        )
