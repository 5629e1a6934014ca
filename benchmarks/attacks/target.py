"""The attacked pipeline, differentiable from tokens to loss, for attackers with its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from guard.fitting.prompts.vocabulary import typed, words
from steering.images.conditioning import Conditioning


@dataclass(frozen=True)
class Views:
    """Noisy latents `[views, ...]`, timesteps `[views]`, and the wanted predictions `goals`."""

    noisy: Tensor
    timesteps: Tensor
    goals: Tensor


class Target:
    """A pipeline of Stable Diffusion's shape: one text encoder, a UNet, an autoencoder.

    A prompt is a row of *content* token ids, without the tokenizer's special tokens and
    padding. `bf16` runs the denoiser in bfloat16, which is exact enough to compare prompts.
    """

    def __init__(self, pipeline: Any, batch: int = 64, bf16: bool = False) -> None:
        self.pipeline = pipeline
        self.tokenizer = pipeline.tokenizer
        self._encoder = pipeline.text_encoder.eval().requires_grad_(False)
        self._unet = pipeline.unet.eval().requires_grad_(False)
        self._scheduler = pipeline.scheduler
        self._batch = batch
        self._bf16 = bf16
        self._masked = bool(getattr(self._encoder.config, "use_attention_mask", False))
        self.embeddings: Tensor = self._encoder.get_input_embeddings().weight

    def text(self, content: Sequence[int]) -> str:
        """The prompt of content ids, as an attacker would type it."""
        return str(self.tokenizer.decode(list(content))).strip()

    def content(self, text: str) -> list[int]:
        """The content ids of a prompt."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def survives(self, candidates: Tensor) -> Tensor:
        """Whether each prompt, decoded and tokenised again, has the same tokens, `[n]`."""
        _, same = typed(self.tokenizer, candidates)
        return same

    @cached_property
    def words(self) -> list[tuple[int, str]]:
        """All tokens that are whole words of plain letters, with their words."""
        return words(self.tokenizer)

    def encode(self, candidates: Tensor) -> Conditioning:
        """Conditioning of content ids `[n, length]`, without gradient."""
        with torch.no_grad():
            return self._conditioning(self._padded(candidates), None)

    def gradient(self, content: Tensor, loss: Callable[[Conditioning], Tensor]) -> Tensor:
        """Gradient of the `loss` of one prompt `[length]` by one-hot tokens, `[length,
        vocabulary]`."""
        padded = self._padded(content[None])
        ids = padded["input_ids"]
        first = int((padded["special_tokens_mask"][0] == 0).nonzero()[0, 0])
        vectors = self.embeddings[ids].clone().requires_grad_()
        with torch.enable_grad():
            value = loss(self._conditioning(padded, vectors))
            (slope,) = torch.autograd.grad(value, vectors)
        slopes: Tensor = slope[0, first : first + len(content)] @ self.embeddings.T
        return slopes

    def latents(self, images: Tensor) -> Tensor:
        """Scaled latents of images `[n, 3, height, width]` in 0..1."""
        vae = self.pipeline.vae
        with torch.no_grad():
            encoded = vae.encode(images * 2 - 1)
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        scaled: Tensor = latents * vae.config.scaling_factor
        return scaled.float()

    def views(self, latents: Tensor, generator: torch.Generator, prompt: str | None) -> Views:
        """One noisy view of each latent, at timesteps spread over the middle of the schedule.

        The goal is the prediction of a perfect denoiser or, with a `prompt`, that of this denoiser
        under the prompt.
        """
        count = len(latents)
        steps = self._scheduler.config.num_train_timesteps
        # the first steps are all noise, the last ones details: neither decides what the image shows
        shares = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        times = ((0.2 + 0.7 * shares) * steps).long()
        noise = torch.randn(latents.shape, generator=generator)
        noisy = self._scheduler.add_noise(latents, noise, times)
        if prompt is not None:
            text = self.encode(torch.tensor([self.content(prompt)]))
            goals = self._predict(noisy, times, text.expand(count))
        elif self._scheduler.config.prediction_type == "v_prediction":
            goals = self._scheduler.get_velocity(latents, noise, times)
        else:
            goals = noise
        return Views(noisy, times, goals)

    def errors(self, text: Conditioning, views: Views) -> Tensor:
        """Mean squared error `[prompts]` of the denoiser over the views, differentiable."""
        count = len(views.noisy)
        batch = max(self._batch // count, 1)
        errors = []
        for first in range(0, text.rows, batch):
            part = text.select(slice(first, first + batch))
            rows = torch.arange(part.rows).repeat_interleave(count)
            noisy, times, goals = (
                tensor.repeat(part.rows, *[1] * (tensor.ndim - 1))
                for tensor in (views.noisy, views.timesteps, views.goals)
            )
            prediction = self._predict(noisy, times, part.select(rows), gradient=True)
            error = (prediction - goals).square().flatten(1).mean(1)
            errors.append(error.view(part.rows, count).mean(1))
        return torch.cat(errors)

    def _predict(
        self, noisy: Tensor, times: Tensor, text: Conditioning, gradient: bool = False
    ) -> Tensor:
        device = noisy.device.type
        with (
            torch.set_grad_enabled(gradient and torch.is_grad_enabled()),
            torch.autocast(device, torch.bfloat16, enabled=self._bf16),
        ):
            prediction: Tensor = self._unet(noisy, times, text.states["text"]).sample
        return prediction.float()

    def _padded(self, candidates: Tensor) -> dict[str, Tensor]:
        texts = [self.text(row) for row in candidates.tolist()]
        padded = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        return dict(padded)

    def _conditioning(self, padded: dict[str, Tensor], vectors: Tensor | None) -> Conditioning:
        mask = {"attention_mask": padded["attention_mask"]} if self._masked else {}
        layer = self._encoder.get_input_embeddings()
        handle = (
            None
            if vectors is None
            else layer.register_forward_hook(lambda _module, _inputs, _output: vectors)
        )
        try:
            states = self._encoder(input_ids=padded["input_ids"], **mask)[0]
        finally:
            if handle is not None:
                handle.remove()
        return Conditioning({"text": states}, {"text": padded["attention_mask"].bool()})
