"""What a row starts from: noise of its own seed, or an image, or noise that it was given.

Latents are those of one row, `[channels, (frames,) height, width]`, as `Family.encode_image`
gives them and `Family.unpacked` shows them.
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
    """An image that is led to noise first, and drawn from that (DDIM inversion, arXiv 2010.02502).

    The row inverts its image without guidance and under its own conditioning, as its guards left
    that, in twice as many evaluations as steps, and draws what comes out with its guidance. A
    scheduler that looks back is taken as one of first order both ways. The seed says nothing.
    """

    latents: Tensor


@dataclass(frozen=True, eq=False)
class GivenNoise:
    """Noise of unit variance in place of the seed's."""

    latents: Tensor


InitialState = EditedImage | InvertedImage | GivenNoise


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A row's evaluations of the network, one behind the other in the sampler's tables.

    `schedule` is what it draws by, `offset` the place of the first evaluation. The first
    `inverting` of them lead to noise; `skipped` ones of the whole schedule are not gone.
    """

    schedule: Schedule
    offset: int
    evaluations: int
    inverting: int = 0
    skipped: int = 0

    @property
    def drawing(self) -> int:
        """The evaluations that draw."""
        return self.evaluations - self.inverting

    @property
    def whole(self) -> int:
        """The evaluations of the schedule that it draws by, with those that are skipped."""
        return self.drawing + self.skipped


class Trajectories:
    """Where rows' evaluations lie in the tables of a sampler. Those of inversions are kept here."""

    def __init__(self, sampler: Sampler, family: Family) -> None:
        self._sampler, self._family = sampler, family
        self._inverting: dict[int, Trajectory] = {}

    def check(self, steps: int, beginning: InitialState | None) -> None:
        """Raises ValueError for latents of another shape or a strength past its range."""
        if beginning is not None:
            shape, found = self._family.shape, tuple(beginning.latents.shape)
            if found != shape:
                raise ValueError(f"latents to start from must be {shape}, not {found}")
        if isinstance(beginning, EditedImage) and not 0 < beginning.strength <= 1:
            raise ValueError(f"strength must lie over 0 and be 1 at most, not {beginning.strength}")
        self.find(steps, beginning)

    def find(self, steps: int, beginning: InitialState | None) -> Trajectory:
        """Raises ValueError for what the scheduler cannot do."""
        sampler = self._sampler
        if isinstance(beginning, InvertedImage):
            return self._inversion(steps)
        skipped = _skipped(steps, beginning)
        schedule, whole = sampler.schedule(steps, skipped), sampler.schedule(steps)
        offset, left_out = sampler.offset(steps, skipped), len(whole) - len(schedule)
        return Trajectory(schedule, offset, len(schedule), skipped=left_out)

    def samples(
        self, steps: Sequence[int], beginnings: Sequence[InitialState | None], noise: Tensor
    ) -> Tensor:
        """What rows hold before their first evaluation, from unit noise `[rows, ...]`, packed."""
        given = [
            None if each is None else self._family.packed(each.latents[None].to(noise))[0]
            for each in beginnings
        ]
        schedules = [
            self._sampler.schedule(count, _skipped(count, each))
            for count, each in zip(steps, beginnings, strict=True)
        ]
        samples = []
        for unit, latents, each, schedule in zip(noise, given, beginnings, schedules, strict=True):
            if latents is None:
                samples.append(unit * schedule.initial)
            elif isinstance(each, EditedImage):
                samples.append(_noised(latents, unit, schedule))
            else:
                samples.append(
                    latents * (schedule.initial if isinstance(each, GivenNoise) else 1.0)
                )
        return torch.stack(samples)

    def _inversion(self, steps: int) -> Trajectory:
        if steps not in self._inverting:
            drawing = first_order(self._family.scheduler, self._sampler.schedule(steps))
            inverting = inverse(drawing)
            offset = self._sampler.append(inverting)
            self._sampler.append(drawing)
            evaluations = len(inverting) + len(drawing)
            self._inverting[steps] = Trajectory(
                drawing, offset, evaluations, inverting=len(inverting)
            )
        return self._inverting[steps]


def _skipped(steps: int, beginning: InitialState | None) -> int:
    """Steps that are left out at the start."""
    if not isinstance(beginning, EditedImage):
        return 0
    return steps - max(1, int(steps * beginning.strength))


def _noised(latents: Tensor, unit: Tensor, schedule: Schedule) -> Tensor:
    signal, noise = float(schedule.signal[0]), float(schedule.noise[0])
    return signal * latents + noise * unit
