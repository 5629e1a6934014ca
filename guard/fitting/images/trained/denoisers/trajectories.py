"""Noisy latents on the way to images, as a denoiser itself makes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from guard.errors import DataError, ModelError
from guard.fitting.images.trained.denoisers.lesson import DenoiserLesson
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.sampling.samplers import Sampler

_SEEDS = _NEVER = 2**31


@dataclass(frozen=True)
class TrajectorySettings:
    """`count` images at once, in `steps` steps; `guidance` None is the pipeline's default. Where
    the changed denoiser makes them, new ones replace them after `refresh` updates."""

    count: int = 8
    steps: int = 12
    guidance: float | None = None
    refresh: int = 20


@dataclass(frozen=True, eq=False)
class States:
    """`inputs [n, ...]` of the network, `timesteps [n]`, the noise `level [n]` (noise over signal),
    and the `prompt [n]` of each, by its number."""

    inputs: Tensor
    timesteps: Tensor
    level: Tensor
    prompt: Tensor

    def select(self, rows: Tensor) -> States:
        """These, by index."""
        return States(*(tensor[rows.to(tensor.device)] for tensor in vars(self).values()))

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """The prompt of each, among those that they are numbers of."""
        return [prompts[number] for number in self.prompt.tolist()]


class Trajectories:
    """The states of images of some prompts, all steps of each.

    Raises ModelError for a pipeline or a scheduler that the engine cannot run, and DataError where
    no step lies in one of `windows` of noise levels.
    """

    def __init__(
        self,
        lesson: DenoiserLesson,
        prompts: Sequence[str],
        settings: TrajectorySettings,
        *,
        edited: bool,
        windows: Sequence[tuple[float, float]] = (),
    ) -> None:
        family = lesson.family
        self._lesson, self._prompts, self._settings = lesson, prompts, settings
        self._edited = edited
        try:
            self._engine = DiffusionEngine(family, capacity=settings.count, forward=None)
            sampler = Sampler(family.scheduler, family.arrange, device=family.device)
            self._schedule = sampler.schedule(settings.steps)
        except ValueError as error:
            raise ModelError(f"model {lesson.image_model.name!r}: {error}") from error
        for low, high in windows:
            if not any(low <= level <= high for level in self._schedule.sigma):
                raise DataError(
                    f"none of {settings.steps} steps has a noise level of {low:g} to {high:g}: "
                    "give more --steps"
                )
        self._states: States | None = None
        self._until = 0

    def draw(
        self, update: int, rows: int, low: float = 0.0, high: float = math.inf
    ) -> tuple[list[str], States]:
        """`rows` states of these noise levels, at random, with their prompts."""
        if self._states is None or update >= self._until:
            self._states = self._generated()
            self._until = update + self._settings.refresh if self._edited else _NEVER
        level = self._states.level
        within = ((level >= low) & (level <= high)).nonzero()[:, 0]
        chosen = torch.randint(len(within), (rows,), generator=self._lesson.generator)
        states = self._states.select(within[chosen.to(within.device)])
        return states.texts(self._prompts), states

    def state(self) -> dict[str, Tensor]:
        """See `guard.fitting.resuming.Resumable`."""
        if self._states is None:
            return {}
        return {**vars(self._states), "until": torch.tensor(self._until)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `guard.fitting.resuming.Resumable`."""
        names = ("inputs", "timesteps", "level", "prompt")
        device = self._lesson.family.device
        self._states = States(*(state[name].to(device) for name in names)) if state else None
        self._until = int(state["until"]) if state else 0

    def _generated(self) -> States:
        lesson, schedule, settings = self._lesson, self._schedule, self._settings
        family, generator = lesson.family, lesson.generator
        guidance = family.defaults[1] if settings.guidance is None else settings.guidance
        numbers = torch.randint(len(self._prompts), (settings.count,), generator=generator)
        seeds = torch.randint(_SEEDS, (settings.count,), generator=generator).tolist()
        rows = range(settings.count)
        self._engine.start(
            [
                ImageStart(self._prompts[n], seed=s, steps=settings.steps, guidance=guidance)
                for n, s in zip(numbers.tolist(), seeds, strict=True)
            ]
        )
        inputs = []
        with lesson.deltas.on() if self._edited else nullcontext():
            for scale in schedule.input_scale.tolist():
                # the engine's own tensors take no part in gradients
                inputs.append(scale * family.packed(self._engine.finished(rows)).clone())
                self._engine.step()
        self._engine.reset()
        device, counts = family.device, settings.count
        level = torch.tensor(schedule.sigma)
        return States(
            torch.cat(inputs),
            schedule.timestep.to(device).repeat_interleave(counts),
            level.to(device).repeat_interleave(counts),
            numbers.to(device).repeat(len(schedule)),
        )
