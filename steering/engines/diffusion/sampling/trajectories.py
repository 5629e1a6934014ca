"""The initial state of a row (the noise of its seed, an image, or given noise) and its evaluations.

Latents here are those of one row, `[channels, (frames,) height, width]`, as `Family.encode_image`
and `Family.unpacked` return them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.engines.diffusion.families import Family
from steering.engines.diffusion.sampling.inversion import first_order, inverse
from steering.engines.diffusion.sampling.samplers import Sampler, Schedule


@dataclass(frozen=True, eq=False)
class EditedImage:
    """An image under noise of the row's seed, denoised from there on (SDEdit, arXiv 2108.01073).

    `strength` in (0, 1] is the share of the steps that are taken, rounded down to whole ones as
    diffusers' `StableDiffusionImg2ImgPipeline` does, but one at least.
    """

    latents: Tensor
    strength: float


@dataclass(frozen=True, eq=False)
class InvertedImage:
    """An image that is inverted to noise and generated again (DDIM inversion, arXiv 2010.02502).

    The row inverts its image without guidance, under the conditioning that its guards have left, in
    twice as many evaluations as steps, and then generates from the result with its guidance. A
    multistep scheduler is replaced by its first-order form in both directions. The seed has no
    effect.
    """

    latents: Tensor


@dataclass(frozen=True, eq=False)
class GivenNoise:
    """Noise of unit variance in place of the seed's."""

    latents: Tensor


InitialState = EditedImage | InvertedImage | GivenNoise


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A row's evaluations of the network, which are consecutive in the sampler's tables.

    `schedule` is the one that generates, `offset` the position of the first evaluation. The first
    `inverting` evaluations lead to noise; `skipped` evaluations of the whole schedule are left out.
    """

    schedule: Schedule
    offset: int
    evaluations: int
    inverting: int = 0
    skipped: int = 0

    @property
    def generating(self) -> int:
        """The number of evaluations that generate."""
        return self.evaluations - self.inverting

    @property
    def whole(self) -> int:
        """The number of evaluations that generate, plus those that are skipped."""
        return self.generating + self.skipped


class Trajectories:
    """The trajectories of rows in the tables of a sampler, with a cache of those of inversions."""

    def __init__(self, sampler: Sampler, family: Family) -> None:
        self._sampler, self._family = sampler, family
        self._inverting: dict[int, Trajectory] = {}

    def check(self, steps: int, initial: InitialState | None) -> None:
        """Raise ValueError for latents of another shape, a strength outside its range, and steps
        that the scheduler refuses."""
        if initial is not None:
            expected, shape = self._family.shape, tuple(initial.latents.shape)
            if shape != expected:
                raise ValueError(f"latents to start from must be {expected}, not {shape}")
        if isinstance(initial, EditedImage) and not 0 < initial.strength <= 1:
            raise ValueError(f"strength must lie over 0 and be 1 at most, not {initial.strength}")
        self.find(steps, initial)

    def find(self, steps: int, initial: InitialState | None) -> Trajectory:
        """The trajectory of a row. Raises ValueError for steps that the scheduler refuses."""
        sampler = self._sampler
        if isinstance(initial, InvertedImage):
            return self._inversion(steps)
        skipped = _skipped(steps, initial)
        schedule, whole = sampler.schedule(steps, skipped), sampler.schedule(steps)
        offset, left_out = sampler.offset(steps, skipped), len(whole) - len(schedule)
        return Trajectory(schedule, offset, len(schedule), skipped=left_out)

    def samples(
        self, steps: Sequence[int], initial: Sequence[InitialState | None], noise: Tensor
    ) -> Tensor:
        """The samples before the first evaluations, from unit noise `[rows, ...]`, packed."""
        samples = []
        for unit, count, state in zip(noise, steps, initial, strict=True):
            schedule = self._sampler.schedule(count, _skipped(count, state))
            if state is None:
                samples.append(unit * schedule.initial)
                continue
            latents = self._family.packed(state.latents[None].to(noise))[0]
            if isinstance(state, EditedImage):
                samples.append(_noised(latents, unit, schedule))
            else:
                scale = schedule.initial if isinstance(state, GivenNoise) else 1.0
                samples.append(latents * scale)
        return torch.stack(samples)

    def _inversion(self, steps: int) -> Trajectory:
        if steps not in self._inverting:
            generating = first_order(self._family.scheduler, self._sampler.schedule(steps))
            inverting = inverse(generating)
            offset = self._sampler.append(inverting)
            self._sampler.append(generating)
            evaluations = len(inverting) + len(generating)
            self._inverting[steps] = Trajectory(
                generating, offset, evaluations, inverting=len(inverting)
            )
        return self._inverting[steps]


def _skipped(steps: int, initial: InitialState | None) -> int:
    """The number of steps that are left out at the start."""
    if not isinstance(initial, EditedImage):
        return 0
    return steps - max(1, int(steps * initial.strength))


def _noised(latents: Tensor, unit: Tensor, schedule: Schedule) -> Tensor:
    signal, noise = float(schedule.signal[0]), float(schedule.noise[0])
    return signal * latents + noise * unit
