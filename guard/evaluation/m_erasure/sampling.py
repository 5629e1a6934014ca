"""A guarded image with a slope: the engine's loop once more, for one policy and rows that start
together, differentiable with respect to the noise that they start from.

The engine runs in inference mode. Here the same parts (bank, seams, guidance, erasers, sampler) are
put together in the same order, so that an attacker attacks what is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guard.evaluation.m_erasure.guarded_loss import limits_of, over_limits
from guard.plans.images import ImagePlan, ImagePlans
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.forwards import ROWS, Forwards, RowSeam
from steering.engines.diffusion.rows import beside
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.engines.diffusion.sampling.trajectories import Trajectories
from steering.engines.diffusion.seams.latents import DenoisingStep, LatentSeam
from steering.engines.diffusion.seams.projections import ProjectionSeam
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning, concatenated
from steering.images.guidance import Guidance
from steering.images.latent import LatentEvidence, LatentGuards, Localization
from steering.methods.irece import IreceGuards, standing_out


@dataclass(frozen=True, eq=False)
class Sampled:
    """Finished `latents [rows, channels, height, width]`, and `seen [rows]`: what guards of latents
    say over their thresholds, the mean over their looks."""

    latents: Tensor
    seen: Tensor


class _Known:
    """An eraser as its attacker knows it: what it says is kept, its mask passes a slope on."""

    def __init__(self, eraser: LatentGuards, limits: dict[int, float]) -> None:
        self._eraser, self._limits = eraser, limits
        self.names, self.channels = eraser.names, eraser.channels
        self.looks, self.reads = eraser.looks, eraser.reads
        self.said: list[Tensor] = []

    def sense(self, estimate: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        score, votes = self._eraser.sense(estimate, columns)
        self.said.append(over_limits(score, {c: self._limits[c] for c in columns}))
        return score, votes

    def find(self, seen: LatentEvidence) -> Localization:
        found = self._eraser.find(seen)
        if not isinstance(self._eraser, IreceGuards):
            return found
        # straight through: the mask's values, the slope of where the evidence stands out
        soft = torch.sigmoid(standing_out(self._eraser.evidence(seen)))
        return replace(found, mask=found.mask + (soft - soft.detach()))


class GuardedSampling:
    """Draws from given noise under one plan, in `steps` at `guidance`.

    What the policy does with an image afterwards (blocking it, drawing a replacement) is left out.
    Hooks the denoiser until `close`. `forward` is as in DiffusionEngine: None, all rows at once, is
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
        self._family, self._plans, self._plan = family, plans, plan
        self._scale = guidance
        carried = {row.name: row for row in plan.rows()}
        self._erasers = [_Known(e, limits_of(e.names, carried)) for e in plans.erasers]
        self._screens = [(s, limits_of(s.names, carried)) for s in plans.finished.screens]
        self._erasing = LatentSeam(self._erasers, family)
        self._late = [row for row in plan.rows() if row.name in self._erasing]
        self._projections = ProjectionSeam(family.denoiser, family.cross_attention())
        self._projections.install(plans.overlays)
        seams: list[RowSeam] = [self._projections, self._erasing.seam]
        self._forwards = Forwards(family, None if forward is None else int(forward), seams)
        self._sampler = Sampler(family.scheduler, family.arrange, device=family.device)
        self._path = Trajectories(self._sampler, family).find(steps, None)

    def close(self) -> None:
        """Take the hooks off."""
        self._erasing.close()
        self._projections.remove()

    def __call__(self, noise: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Sampled:
        """From `noise [rows, channels, height, width]` of unit variance; `seeds` as the engine's
        rows have them, for what erasers put in."""
        family, rows = self._family, len(noise)
        device = noise.device
        parts = [self._read(prompt) for prompt in prompts]
        own = concatenated([text for text, _ in parts])
        fired = [guards for _, guards in parts]
        guidance = Guidance(self._plans.guides, device)
        self._erasing.reset()
        for row, (guards, seed) in enumerate(zip(fired, seeds, strict=True)):
            guidance.add(row, [guard for guard in guards if guard.name in guidance])
            self._erasing.add(row, self._late, self._path, seed)
        for eraser in self._erasers:
            eraser.said.clear()
        every = torch.arange(rows, device=device)
        # prompts that say nothing are guided nowhere, unless a guard does it
        leads = any(prompts) or bool(len(guidance.rows))
        free = self._scale > 1 and not family.distilled and leads
        texts, sources = [own], [every]
        if free:
            with torch.no_grad():
                texts.append(family.unconditional([""]).expand(rows))
            sources.append(every)
        if len(guidance.rows):
            texts.append(guidance.text)
            sources.append(guidance.rows)
        text, source = concatenated(texts), torch.cat(sources)
        overlaid = [[g for g in guards if g.name in self._projections] for guards in fired]
        self._projections.carry(overlaid, source)
        plain = [rows + row if free else row for row in range(rows)]
        scale = torch.full((rows,), self._scale, device=device)
        sample = family.packed(noise) * self._path.schedule.initial
        carry = torch.zeros_like(sample)
        for done in range(self._path.evaluations):
            at = torch.full((rows,), self._path.offset + done, device=device)
            timesteps, shrink = self._sampler.inputs(at)
            self._erasing.look([done] * rows, plain)
            inputs = sample * beside(shrink, sample)
            said = self._forwards(inputs[source], timesteps[source], text, scale[source])
            conditional, rest = said[:rows], said[rows:]
            unconditional = rest[:rows] if free else conditional
            if len(guidance.rows):
                progress = torch.full((rows,), done / self._path.whole, device=device)
                guided = guidance.combine(
                    unconditional, conditional, rest[rows:], scale=scale, progress=progress
                )
            else:
                wide = beside(scale, said)
                guided = unconditional + wide * (conditional - unconditional)
            moved, following = self._sampler.step(at, sample, guided, carry)
            step = DenoisingStep(sample, unconditional, guided, moved, following)
            sample, carry = self._erasing.write(step)
        latents = family.unpacked(sample)
        return Sampled(latents, self._seen(latents))

    @torch.no_grad()
    def _read(self, prompt: str) -> tuple[Conditioning, list[RowGuard]]:
        """What the guards leave of a prompt, and those that act on its drawing."""
        guards = self._plan.prompt_rows()
        overflow = self._family.overflow([prompt]) if guards else ()
        applied = self._plans.bank.apply(self._family.encode([prompt]), [guards], overflow)
        (readings,) = applied.readings
        return applied.text, [g for g in guards if g.acts and readings[g.name].fired]

    def _seen(self, latents: Tensor) -> Tensor:
        total = torch.zeros(len(latents), device=latents.device)
        for eraser in self._erasers:
            if eraser.said:
                total = total + torch.stack(eraser.said).mean(0)
        for screen, limits in self._screens:
            if limits:
                total = total + over_limits(screen.sense(latents, [*limits]), limits)
        return total
