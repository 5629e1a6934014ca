"""The denoising steps of a pipeline that a caller runs, followed from outside.

The pipeline runs its denoiser and calls its scheduler's `step` in its own loop. Hooks around the
denoiser announce the rows of a forward to the seams and keep its output; around `step`, the
denoising step of the engine (`denoising.py`) guides and writes the rows on which guards act. All
other rows keep the result of the pipeline and its scheduler, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from steering.engines.diffusion.calls import guidance_scale, trajectory_of_call
from steering.engines.diffusion.denoising import Denoising, Predicted
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.rows import beside
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.engines.diffusion.sampling.trajectories import Trajectory
from steering.engines.errors import Unfollowed
from steering.hidden.rows import RowGuard
from steering.images.embedding import ImageReading, acting
from steering.images.stacks import ImageStacks


class StepFollower:
    """Follows the calls of one pipeline until `remove`, row by row.

    A call is `begin`, then the forwards and steps of the pipeline, then `end`. Raises ValueError
    for guards that do not fit the pipeline, and Unfollowed from inside a call whose steps cannot be
    followed. Not thread-safe.
    """

    def __init__(self, family: Family, stacks: ImageStacks, guards: Sequence[RowGuard]) -> None:
        self._family, self._stacks = family, stacks
        self._guards = tuple(guards)
        self._writing = [
            guard for guard in guards if any(guard.name in s.names for s in stacks.latents)
        ]
        # probed on a copy: the scheduler of the pipeline is wrapped, and may be in use by a call
        self._scheduler = family.scheduler
        self._probed = copy.deepcopy(self._scheduler)
        vars(self._probed).pop("step", None)  # an attachment around this one wraps it
        self._inside = False
        """Whether the running forward is one of this class, and not the pipeline's."""
        self._build()
        denoiser = family.denoiser
        self._handles = [
            denoiser.register_forward_pre_hook(self._before, with_kwargs=True),
            denoiser.register_forward_hook(self._after),
        ]
        self._rows = 0
        self.steps = 0
        """The number of steps of the call so far."""

    @staticmethod
    def follows(stacks: ImageStacks, guards: Sequence[RowGuard]) -> bool:
        """Whether any of these guards acts in a step, or reads the latents after one."""
        acts = {*stacks.overlays_of(""), *(n for stack in stacks.guidance for n in stack.names)}
        reads = {name for stack in stacks.latents for name in stack.names}
        return any(g.name in reads or (g.acts and g.name in acts) for g in guards)

    def _build(self) -> None:
        """Create the seams for the current image size of the family. Raises ValueError."""
        self._shape: tuple[int, ...] = ()
        self._inside = True
        family = self._family
        try:
            self._denoising = Denoising(
                family,
                self._stacks,
                # of this size too: the timesteps of some schedulers depend on it
                Sampler(copy.deepcopy(self._probed), family.arrange, device=family.device),
                forward=None,
                one_by_one=family.device.type == "cpu",
            )
        finally:
            self._inside = False
        self._shape = self._family.shape

    def remove(self) -> None:
        """Take every hook off the denoiser."""
        for handle in self._handles:
            handle.remove()
        self._denoising.close()

    # -- one call ---------------------------------------------------------------------------------

    def begin(self, readings: Sequence[dict[str, ImageReading]]) -> None:
        """Begin a call, with these readings of each row's prompt."""
        self.resize()
        self._denoising.reset()
        self._rows = len(readings)
        names = self._stacks.prompts.names
        self._acting = [acting(self._guards, row, names) for row in readings]
        self._negated = False
        self._seeds: Sequence[int] | None = None
        self._trajectory: Trajectory | None = None
        self._guided = False
        self._outputs: list[Tensor] = []
        self._written = torch.zeros(self._rows, dtype=torch.bool)
        self._carry: Tensor | None = None
        self.steps = 0

    def resize(self) -> None:
        """Follow images of the family's current size; before the first step of a call.

        May run the text encoders and the denoiser once. Raises Unfollowed where guards cannot
        follow images of that size.
        """
        if self._family.shape == self._shape:
            return
        self._denoising.close()
        try:
            with torch.inference_mode(False), torch.no_grad():
                self._build()
        except ValueError as error:
            raise Unfollowed(str(error)) from error

    def encoded_negative(self) -> None:
        """Record that the pipeline has encoded its negative prompt, for a second forward."""
        self._negated = True

    def seeded(self, generators: Any) -> None:
        """Record the generators of the call's noise: one for all rows, or one for each."""
        if isinstance(generators, torch.Generator):
            first = generators.initial_seed()
            self._seeds = [(first + row) % 2**62 for row in range(self._rows)]
        elif generators:
            self._seeds = [generator.initial_seed() % 2**62 for generator in generators]

    @property
    def _busy(self) -> bool:
        """Whether a guard acts on or reads a row of this call."""
        return any(self._acting) or bool(self._writing)

    def require_steps(self) -> None:
        """After a call: raise Unfollowed where none of its steps was seen, and guards were due."""
        if self._rows and self._busy and self.steps == 0:
            raise Unfollowed(
                "the steps of the call were not seen: use the pipeline's own scheduler"
            )

    def end(self, latents: Tensor) -> None:
        """End the call: guards that have written score its finished `latents [rows, ...]`."""
        latent_seam = self._denoising.latents
        if written := latent_seam.written(range(self._rows)):
            with torch.no_grad():
                latent_seam.settle(written, self._family.unpacked(latents[written].float()))

    def readings(self, row: int) -> Mapping[str, ImageReading]:
        """The readings of the latent guards on a row."""
        return self._denoising.latents.readings(row)

    def masks(self, row: int) -> Mapping[str, Tensor]:
        """The masks of the writes of guards on a row, `[(frames,) height, width]` in 0..1."""
        return self._denoising.latents.masks(row)

    # -- the denoiser -----------------------------------------------------------------------------

    def _before(self, _denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Announce the rows of a forward: those of the call, or twice those under guidance."""
        if self._inside or not self._rows:
            return
        latents = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        if not isinstance(latents, Tensor) or len(latents) not in (self._rows, 2 * self._rows):
            raise Unfollowed("a forward of other rows than the call's prompts cannot be guarded")
        covered = sum(map(len, self._outputs))
        if covered + len(latents) > 2 * self._rows:
            raise Unfollowed("forwards without a step of the attached scheduler cannot be guarded")
        if not self._outputs:
            self._begin_step(len(latents))
        conditional = torch.arange(self._rows, device=latents.device)
        unconditional = conditional + self._rows
        if len(latents) == 2 * self._rows:
            rows = torch.cat([unconditional, conditional])
        else:
            rows = unconditional if self._outputs else conditional
        self._denoising.overlays.enter(rows)
        self._denoising.latents.attention.enter(rows)

    def _after(self, _denoiser: Any, _args: Any, output: Any) -> None:
        if self._inside or not self._rows:
            return
        self._denoising.latents.attention.leave()
        self._outputs.append(output[0])

    def _begin_step(self, size: int) -> None:
        """Prepare a step before its first forward; before the first step, prepare the call."""
        if self.steps == 0:
            pipeline = self._family.pipeline
            if pipeline.scheduler is not self._scheduler:
                raise Unfollowed(
                    "the pipeline has another scheduler than when guards were attached: attach "
                    "them after it is set"
                )
            self._guided = (
                size == 2 * self._rows
                or self._negated
                or bool(getattr(pipeline, "do_classifier_free_guidance", False))
            )
            self._start()
        elif self._denoising.guidance.advance([self.steps] * self._rows):
            self._carry_overlays()
        if self._writing:
            first = self._rows if self._guided else 0
            plain = [first + row for row in range(self._rows)]
            self._denoising.latents.inspect([self.steps] * self._rows, plain)

    def _start(self) -> None:
        denoising = self._denoising
        guidance = denoising.guidance
        guiding = [[guard for guard in row if guard.name in guidance] for row in self._acting]
        if any(guiding):
            self._require_guidance()
        if any(guiding) or self._writing:
            self._trajectory = trajectory_of_call(self._family, denoising.sampler)
            sigmas = self._trajectory.schedule.sigma
            try:
                for row, guards in enumerate(guiding):
                    guidance.add(row, guards, sigmas)
            except ValueError as error:
                raise Unfollowed(str(error)) from error
            guidance.advance([0] * self._rows)
        self._carry_overlays()
        if self._writing:
            assert self._trajectory is not None
            try:
                denoising.latents.check(self._writing, self._trajectory)
            except ValueError as error:
                raise Unfollowed(str(error)) from error
            self._add_writing(self._trajectory)

    def _carry_overlays(self) -> None:
        """Give conditional, unconditional and extra rows of the network their overlays."""
        rows = torch.arange(self._rows, device=self._family.device)
        sources = [rows, rows] if self._guided else [rows]
        extra = self._denoising.guidance.extra_rows
        self._denoising.overlays.carry(self._acting, torch.cat([*sources, extra]))

    def _add_writing(self, trajectory: Trajectory) -> None:
        # the seed of a call without a generator is unknown: any will do
        seeds = self._seeds or range(self._rows)
        for row, seed in zip(range(self._rows), seeds, strict=True):
            self._denoising.latents.add(row, self._writing, trajectory, seed)

    def _require_guidance(self) -> None:
        names = sorted(
            {g.name for row in self._acting for g in row if g.name in self._denoising.guidance}
        )
        if self._family.distilled or not self._guided:
            raise Unfollowed(
                f"{names[0]} acts on guidance: ask for classifier-free guidance of more than 1"
            )
        if getattr(self._family.pipeline, "guidance_rescale", 0.0):
            raise Unfollowed(f"{names[0]} acts on guidance, and guidance_rescale does too")

    # -- the scheduler ----------------------------------------------------------------------------

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A scheduler's `step`, with the guards of the call around it."""

        @wraps(step)  # pipelines inspect its signature
        def stepped(
            model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any
        ) -> Any:
            if self._rows and not self._outputs and self._busy:
                raise Unfollowed("a step without a forward of the denoiser cannot be guarded")
            if not self._rows or self._trajectory is None:
                self._outputs.clear()
                self.steps += 1
                return step(model_output, timestep, sample, *args, **kwargs)
            if not isinstance(sample, Tensor) or len(sample) != self._rows:
                raise Unfollowed("a step of other rows than the call's prompts cannot be guarded")
            if kwargs.get("eta"):
                raise Unfollowed("eta adds noise that guards cannot follow: leave it out")
            with torch.no_grad():
                predicted = self._predicted(model_output)
                output = self._guide(predicted, model_output, sample)
            result = step(output, timestep, sample, *args, **kwargs)
            with torch.no_grad():
                return self._write(result, predicted, output, sample)

        return stepped

    def _predicted(self, model_output: Tensor) -> Predicted:
        """The predictions of the step's forwards, in the order of the call's rows."""
        outputs, self._outputs = self._outputs, []
        count, channels = self._rows, model_output.shape[1]
        if not outputs:
            raise Unfollowed("a step without a forward of the denoiser cannot be guarded")
        if sum(map(len, outputs)) != count * (2 if self._guided else 1):
            raise Unfollowed(
                "classifier-free guidance that a call switches on or off between its steps cannot "
                "be guarded"
            )
        # a network that learns its variance returns it after the prediction
        predictions = [output[:, :channels].float() for output in outputs]
        if len(predictions[0]) == 2 * count:
            unconditional, conditional = predictions[0][:count], predictions[0][count:]
        else:
            conditional, unconditional = predictions[0], predictions[-1]
        no_extra = conditional[:0]
        return Predicted(unconditional, conditional, no_extra)

    def _guide(self, predicted: Predicted, model_output: Tensor, sample: Tensor) -> Tensor:
        """The guided output, with the terms of guidance guards in the rows that carry them."""
        denoising, trajectory = self._denoising, self._trajectory
        assert trajectory is not None
        if not len(denoising.guidance):
            return model_output
        at = self._at(trajectory)
        timesteps, shrink = denoising.sampler.inputs(at)
        scale = guidance_scale(
            self._family, predicted.unconditional, predicted.conditional, model_output
        )
        extra = self._extra(sample.float() * beside(shrink, sample), timesteps, scale)
        guided = denoising.guided(
            Predicted(predicted.unconditional, predicted.conditional, extra),
            sample.float(),
            timesteps,
            scale,
            torch.full((self._rows,), self.steps / trajectory.whole, device=sample.device),
        )
        touched = beside(denoising.guidance.touched(self._rows), sample)
        return torch.where(touched, guided.to(model_output.dtype), model_output)

    def _extra(self, inputs: Tensor, timesteps: Tensor, scale: Tensor) -> Tensor:
        """Predictions under the extra conditions of guidance guards."""
        denoising = self._denoising
        rows = denoising.guidance.extra_rows
        if not len(rows):
            return inputs[:0]
        first = self._rows * (2 if self._guided else 1)
        denoising.overlays.enter(first + torch.arange(len(rows), device=inputs.device))
        self._inside = True
        try:
            output = self._family.predict(
                inputs[rows], timesteps[rows], denoising.guidance.text, scale[rows]
            )
        finally:
            self._inside = False
            denoising.overlays.leave()
        return output.float()

    def _write(self, result: Any, predicted: Predicted, output: Tensor, sample: Tensor) -> Any:
        """The result of `step`, with the rows replaced in which latent guards have written."""
        trajectory = self._trajectory
        assert trajectory is not None
        at = self._at(trajectory)
        self.steps += 1
        if not self._writing:
            return result
        previous = result[0] if isinstance(result, tuple) else result.prev_sample
        if self._carry is None:
            self._carry = torch.zeros_like(sample, dtype=torch.float32)
        latents = self._denoising.latents
        following, carry = self._denoising.stepped(
            at, sample.float(), predicted, output.float(), self._carry
        )
        self._carry = carry
        # a rewritten row takes the sampler's steps from now on: the scheduler does not know of it
        self._written[latents.written(range(self._rows))] = True
        written = beside(self._written.to(previous.device), previous)
        whole = torch.where(written, following.to(previous.dtype), previous)
        if isinstance(result, tuple):
            return (whole, *result[1:])
        result.prev_sample = whole
        return result

    def _at(self, trajectory: Trajectory) -> Tensor:
        at = trajectory.offset + self.steps
        return torch.full((self._rows,), at, dtype=torch.long, device=self._family.device)
