"""Guarded sampling with a gradient: the engine's denoising step, for one policy and rows that start
together, differentiable with respect to the initial noise.

The engine runs in inference mode. Here the same parts (prompt guarding, denoising step, sampler)
run with a graph, so that an attacker attacks the pipeline that is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor

from guard.errors import DataError
from guard.evaluation.m_erasure.guarded_loss import (
    Gradients,
    gradients_of,
    limits_of,
    over_limits,
)
from guard.plans.images import ImagePlan, ImagePlans
from steering.engines.diffusion.denoising import Denoising, Layout
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.forwards import ROWS
from steering.engines.diffusion.prompts import PromptGuarding
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.engines.diffusion.sampling.trajectories import Trajectories
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning, concatenated
from steering.images.embedding import acting
from steering.images.latent import LatentEvidence, LatentGuards, Localization


@dataclass(frozen=True, eq=False)
class Sampled:
    """Finished `latents [rows, channels, height, width]`, and `excess [rows]`: how far the scores
    of guards of latents exceed their thresholds, the mean over their inspections."""

    latents: Tensor
    excess: Tensor


class Localizing(Protocol):
    """Stacked guards of the latent seam whose mask has a differentiable counterpart."""

    def soft_mask(self, evidence: LatentEvidence) -> Tensor:
        """In 0..1, `[pairs, (frames,) height, width]`."""


class _Differentiated:
    """Latent guards for an attacker: scores are recorded, and masks pass a gradient as the entry of
    their method says."""

    def __init__(
        self, guards: LatentGuards, limits: dict[int, float], gradients: Gradients
    ) -> None:
        self._guards, self._limits = guards, limits
        self.names, self.channels = guards.names, guards.channels
        self.inspections, self.probes = guards.inspections, guards.probes
        self.excess: list[Tensor] = []
        of_carried = [gradients[name] for name in guards.names if name in gradients]
        self._gradient = of_carried[0] if of_carried else "none"

    def sense(self, estimate: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        score, votes = self._guards.sense(estimate, columns)
        excess = over_limits(score, {c: self._limits[c] for c in columns})
        self.excess.append(excess.detach() if self._gradient == "none" else excess)
        return score, votes

    def locate(self, evidence: LatentEvidence) -> Localization:
        location = self._guards.locate(evidence)
        if self._gradient != "straight-through" or not hasattr(self._guards, "soft_mask"):
            return location
        # the values of the mask, with the gradient of the soft mask
        soft = cast(Localizing, self._guards).soft_mask(evidence)
        return replace(location, mask=location.mask + (soft - soft.detach()))


class GuardedSampling:
    """Generates from initial noise under one plan, in `steps` at `guidance`.

    The policy's decisions about a finished image (blocking, a replacement) are left out. Hooks the
    networks until `close`. `forward` is as in DiffusionEngine: None, all rows at once, is faster
    and gives other last bits.
    """

    def __init__(
        self,
        family: Family,
        plans: ImagePlans,
        plan: ImagePlan,
        *,
        steps: int,
        guidance: float,
        forward: int | str | None = "auto",
    ) -> None:
        if forward == "auto":
            forward = ROWS if family.device.type == "cpu" else None
        self._family, self._plan, self._scale = family, plan, guidance
        carried = {row.name: row for row in plan.rows()}
        gradients = gradients_of(plan)
        self._latent_guards = [
            _Differentiated(stack, limits_of(stack.names, carried), gradients)
            for stack in plans.stacks.latents
        ]
        self._output_guards = [
            (stack, limits_of(stack.names, carried)) for stack in plans.stacks.output.stacks
        ]
        stacks = replace(plans.stacks, latents=tuple(self._latent_guards))
        self._prompts = PromptGuarding(family, stacks)
        self._prompt_guards = stacks.prompts.names
        sampler = Sampler(family.scheduler, family.arrange, device=family.device)
        rows = None if forward is None else int(forward)
        self._denoising = Denoising(family, stacks, sampler, forward=rows)
        self._writers = [row for row in plan.rows() if row.name in self._denoising.latents]
        self._trajectory = Trajectories(sampler, family).find(steps, None)
        with torch.no_grad():
            self._plain = family.unconditional([""])
        self._require_windows()

    def _require_windows(self) -> None:
        """Raise DataError where a guidance guard can act in no step."""
        guidance = self._denoising.guidance
        guiding = [row for row in self._plan.rows() if row.acts and row.name in guidance]
        try:
            guidance.check(guiding, self._trajectory.schedule.sigma)
        except ValueError as error:
            self.close()
            raise DataError(str(error)) from error

    def close(self) -> None:
        """Remove the hooks."""
        self._denoising.close()
        self._prompts.close()

    def __call__(self, noise: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Sampled:
        """From `noise [rows, channels, height, width]` of unit variance; `seeds` as the engine's
        rows have them, for the noise that latent guards add."""
        family, denoising, rows = self._family, self._denoising, len(noise)
        texts, negatives, acting_guards = zip(*map(self._read, prompts), strict=True)
        denoising.reset()
        for row, (guards, seed) in enumerate(zip(acting_guards, seeds, strict=True)):
            guiding = [guard for guard in guards if guard.name in denoising.guidance]
            denoising.guidance.add(row, guiding, self._trajectory.schedule.sigma)
            denoising.latents.add(row, self._writers, self._trajectory, seed)
        for stack in self._latent_guards:
            stack.excess.clear()
        # empty prompts need no guidance, unless a guard acts on it
        guided = any(prompts) or bool(len(denoising.guidance)) or family.distilled
        negative = concatenated(negatives)
        overlaying = [
            [guard for guard in guards if guard.name in denoising.overlays]
            for guards in acting_guards
        ]
        text = concatenated(texts)

        def arranged() -> Layout:
            scales = [self._scale if guided else 1.0] * rows
            return denoising.layout(text, negative, scales, [self._trajectory] * rows, overlaying)

        layout = arranged()
        sample = family.packed(noise) * self._trajectory.schedule.initial
        carry = torch.zeros_like(sample)
        for count in range(self._trajectory.evaluations):
            done = torch.full((rows,), count, device=noise.device)
            if denoising.guidance.advance([count] * rows):
                layout = arranged()
            sample, carry = denoising.step(layout, sample, carry, done, [count] * rows)
        latents = family.unpacked(sample)
        return Sampled(latents, self._excess(latents))

    @torch.no_grad()
    def _read(self, prompt: str) -> tuple[Conditioning, Conditioning, list[RowGuard]]:
        """The guarded conditioning of a prompt, the unconditional one beside it, and the guards
        that act on its generation."""
        guards = self._plan.prompt_rows()
        applied = self._prompts([prompt], [guards]).applied
        negative = self._prompts.unconditional([""], [guards], applied.readings, self._plain)
        return applied.text, negative, acting(guards, applied.readings[0], self._prompt_guards)

    def _excess(self, latents: Tensor) -> Tensor:
        total = torch.zeros(len(latents), device=latents.device)
        for stack in self._latent_guards:
            if stack.excess:
                total = total + torch.stack(stack.excess).mean(0)
        for output, limits in self._output_guards:
            if limits:
                total = total + over_limits(output.sense(latents, [*limits]), limits)
        return total
