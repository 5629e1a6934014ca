"""Generation from conditionings without a prompt, as a guard leaves them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steering.engines.diffusion.families import Family
from steering.engines.diffusion.rows import beside
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.images.conditioning import Conditioning, concatenated


class EmbeddingGenerator:
    """Final latents after `steps` steps, with classifier-free guidance of scale `guidance`."""

    def __init__(self, family: Family, *, steps: int, guidance: float) -> None:
        self._family, self._guidance = family, guidance
        self._sampler = Sampler(family.scheduler, family.arrange, device=family.device)
        self._schedule = self._sampler.schedule(steps)
        self._offset = self._sampler.offset(steps)
        with torch.no_grad():
            self._unconditional = family.unconditional([""])

    @torch.no_grad()
    def finished(self, text: Conditioning, seeds: Sequence[int]) -> Tensor:
        """Final latents `[rows * seeds, ...]`: each row of `text` with every seed."""
        repeated = text.select(torch.arange(text.rows).repeat_interleave(len(seeds)))
        noise = self._family.noise([*seeds] * text.rows)
        sample, carry = self._schedule.initial * noise, torch.zeros_like(noise)
        for step in range(len(self._schedule)):
            prediction = self._guided(sample, step, repeated)
            at = torch.full((repeated.rows,), self._offset + step, device=sample.device)
            sample, carry = self._sampler.step(at, sample, prediction, carry)
        return sample

    def first_guess(self, text: Conditioning, seeds: Sequence[int]) -> Tensor:
        """The estimate of the final latents at the first step, `[rows * seeds, ...]`.

        Differentiable by the states of `text`.
        """
        repeated = text.select(torch.arange(text.rows).repeat_interleave(len(seeds)))
        noise = self._family.noise([*seeds] * text.rows)
        sample = self._schedule.initial * noise
        prediction = self._guided(sample, 0, repeated)
        signal, spread = self._schedule.signal[0], self._schedule.noise[0]
        kind = self._family.scheduler.config.get("prediction_type", "epsilon")
        if kind == "v_prediction":
            return signal * sample - spread * prediction
        return (sample - spread * prediction) / signal

    def _guided(self, sample: Tensor, step: int, text: Conditioning) -> Tensor:
        at = torch.full((text.rows,), self._offset + step, device=sample.device)
        timestep, scale = self._sampler.inputs(at)
        scaled = sample * beside(scale, sample)
        both = concatenated([text, self._unconditional.expand(text.rows)])
        guidance = torch.full((2 * text.rows,), self._guidance, device=sample.device)
        prediction = self._family.predict(
            scaled.repeat(2, 1, 1, 1), timestep.repeat(2), both, guidance
        )
        conditional, unconditional = prediction.float().chunk(2)
        return unconditional + self._guidance * (conditional - unconditional)
