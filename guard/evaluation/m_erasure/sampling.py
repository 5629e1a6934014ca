"""A guarded image with a gradient: the engine's denoising step, for one policy and rows that start
together, differentiable with respect to the noise that they start from.

The engine runs in inference mode. Here the same parts (prompt guarding, denoising step, sampler)
run with a graph, so that an attacker attacks what is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor

from guard.evaluation.m_erasure.guarded_loss import (
    Gradients,
    gradients_of,
    limits_of,
    over_limits,
)
from guard.plans.images import ImagePlan, ImagePlans
from steering.engines.diffusion.denoising import Denoising
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
    """Finished `latents [rows, channels, height, width]`, and `seen [rows]`: how far the scores of
    guards of latents lie over their thresholds, the mean over their inspections."""

    latents: Tensor
    seen: Tensor


class Localizing(Protocol):
    """Stacked guards of the latent seam whose mask has a differentiable stand-in."""

    def soft_mask(self, seen: LatentEvidence) -> Tensor:
        """In 0..1, `[pairs, (frames,) height, width]`."""


class _Differentiated:
    """Latent guards as their attacker has them: scores are kept, masks pass a gradient on as their
    method's entry says."""

    def __init__(
        self, guards: LatentGuards, limits: dict[int, float], gradients: Gradients
    ) -> None:
        self._guards, self._limits = guards, limits
        self.names, self.channels = guards.names, guards.channels
        self.looks, self.reads = guards.looks, guards.reads
        self.excess: list[Tensor] = []
        carried = [gradients[name] for name in guards.names if name in gradients]
        self._gradient = carried[0] if carried else "none"

    def sense(self, estimate: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        score, votes = self._guards.sense(estimate, columns)
        excess = over_limits(score, {c: self._limits[c] for c in columns})
        self.excess.append(excess.detach() if self._gradient == "none" else excess)
        return score, votes

    def find(self, seen: LatentEvidence) -> Localization:
        found = self._guards.find(seen)
        if self._gradient != "straight-through" or not hasattr(self._guards, "soft_mask"):
            return found
        # the mask's values, the gradient of the places where the evidence stands out
        soft = cast(Localizing, self._guards).soft_mask(seen)
        return replace(found, mask=found.mask + (soft - soft.detach()))


class GuardedSampling:
    """Generates from given noise under one plan, in `steps` at `guidance`.

    What the policy does with an image afterwards (blocking it, a replacement) is left out. Hooks
    the networks until `close`. `forward` is as in DiffusionEngine: None, all rows at once, is
    faster and gives other last bits.
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
        self._latents = [
            _Differentiated(stack, limits_of(stack.names, carried), gradients)
            for stack in plans.stacks.latents
        ]
        self._output = [
            (stack, limits_of(stack.names, carried)) for stack in plans.stacks.output.stacks
        ]
        stacks = replace(plans.stacks, latents=tuple(self._latents))
        self._prompts = PromptGuarding(family, stacks)
        self._reading = stacks.prompts.names
        sampler = Sampler(family.scheduler, family.arrange, device=family.device)
        rows = None if forward is None else int(forward)
        self._denoising = Denoising(family, stacks, sampler, forward=rows)
        self._writing = [row for row in plan.rows() if row.name in self._denoising.latents]
        self._trajectory = Trajectories(sampler, family).find(steps, None)

    def close(self) -> None:
        """Take the hooks off."""
        self._denoising.close()
        self._prompts.close()

    def __call__(self, noise: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Sampled:
        """From `noise [rows, channels, height, width]` of unit variance; `seeds` as the engine's
        rows have them, for the noise that latent guards put in."""
        family, denoising, rows = self._family, self._denoising, len(noise)
        texts, acting_guards = zip(*map(self._read, prompts), strict=True)
        denoising.reset()
        for row, (guards, seed) in enumerate(zip(acting_guards, seeds, strict=True)):
            guiding = [guard for guard in guards if guard.name in denoising.guidance]
            denoising.guidance.add(row, guiding)
            denoising.latents.add(row, self._writing, self._trajectory, seed)
        for stack in self._latents:
            stack.excess.clear()
        # empty prompts are guided nowhere, unless a guard does it
        leads = any(prompts) or bool(len(denoising.guidance)) or family.distilled
        with torch.no_grad():
            negative = family.unconditional([""]).expand(rows)
        overlaying = [
            [guard for guard in guards if guard.name in denoising.overlays]
            for guards in acting_guards
        ]
        layout = denoising.layout(
            concatenated(texts),
            negative,
            [self._scale if leads else 1.0] * rows,
            [self._trajectory] * rows,
            overlaying,
        )
        sample = family.packed(noise) * self._trajectory.schedule.initial
        carry = torch.zeros_like(sample)
        for count in range(self._trajectory.evaluations):
            done = torch.full((rows,), count, device=noise.device)
            sample, carry = denoising.step(layout, sample, carry, done, [count] * rows)
        latents = family.unpacked(sample)
        return Sampled(latents, self._excess(latents))

    @torch.no_grad()
    def _read(self, prompt: str) -> tuple[Conditioning, list[RowGuard]]:
        """What the guards leave of a prompt, and those that act on its generation."""
        guards = self._plan.prompt_rows()
        applied = self._prompts([prompt], [guards]).applied
        return applied.text, acting(guards, applied.readings[0], self._reading)

    def _excess(self, latents: Tensor) -> Tensor:
        total = torch.zeros(len(latents), device=latents.device)
        for stack in self._latents:
            if stack.excess:
                total = total + torch.stack(stack.excess).mean(0)
        for output, limits in self._output:
            if limits:
                total = total + over_limits(output.sense(latents, [*limits]), limits)
        return total
