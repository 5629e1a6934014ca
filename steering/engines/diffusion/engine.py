"""Continuous batching for a diffusion model, with guards on each row.

Each row has its own timestep, number of steps, guidance scale and seed; all rows share the
network's forwards, and a new row joins between two steps. The engine knows rows only: a scheduler
above it queues requests and talks to clients. Rows are kept dense (`0..n-1`); `drop` fills holes
with the last row.

*One row, one image.* The noise of a row comes from a generator that no other row uses. With a fixed
number of rows in a forward, the default on a CPU, the image of a row has the same bits alone and in
any batch. Where all rows go through one forward (the default on a GPU), kernels sum in an order
that depends on the number of rows: latents then agree within 1e-4 of their largest value in
float32, and few pixels differ, by one level of 255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.engines.diffusion.denoising import Denoising, Layout
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.forwards import ROWS
from steering.engines.diffusion.prompts import PromptGuarding
from steering.engines.diffusion.rows import RowState, Slots
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.engines.diffusion.sampling.trajectories import InitialState, Trajectories
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import Applied, ImageReading, acting
from steering.images.stacks import ImageStacks

SEED_LIMIT = 2**63

T = TypeVar("T")


@dataclass(frozen=True)
class ImageStart:
    """A row to be added.

    A `guidance` of more than 1 is the scale of classifier-free guidance (or the input of a network
    distilled with it); an empty `negative_prompt` stands for the pipeline's default. `embeddings`
    maps each placeholder `<name>` in the prompt to vectors `[vectors, width]` in the space of the
    text encoder's input embeddings (`steering/images/textual_inversion.py`). `initial` None starts
    from the noise of `seed`.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 25
    guidance: float = 7.5
    guards: Sequence[RowGuard] = ()
    embeddings: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    initial: InitialState | None = None


class DiffusionEngine:
    """Runs one pipeline; `capacity` rows at most. Not thread-safe.

    `forward` is the number of rows in one forward of the network (`forwards.py`): "auto" is
    `forwards.ROWS` on a CPU; None takes all rows at once, the default elsewhere. With a number,
    prompts and images are encoded, guarded and decoded one by one too.

    Raises ValueError for a pipeline or a scheduler that the engine cannot run, and for guards that
    do not fit the model.
    """

    def __init__(
        self,
        family: Family,
        stacks: ImageStacks | None = None,
        *,
        capacity: int,
        forward: int | str | None = "auto",
    ) -> None:
        if family.refusal is not None:
            kind = type(family.pipeline).__name__
            raise ValueError(f"this {kind} cannot be run: {family.refusal}")
        if forward == "auto":
            forward = ROWS if family.device.type == "cpu" else None
        self.family, self.capacity = family, capacity
        self._rows_per_forward = None if forward is None else int(forward)
        self._one_by_one = forward is not None
        self._device = family.device
        self._sampler = Sampler(family.scheduler, family.arrange, device=self._device)
        self._sampler.schedule(family.defaults[0])
        self._trajectories = Trajectories(self._sampler, family)
        with torch.no_grad():
            self._plain = family.unconditional([""])
        self._hooked: list[Denoising | PromptGuarding] = []
        self.use(stacks or ImageStacks())

    @property
    def rows(self) -> int:
        return len(self._rows)

    @property
    def invalid(self) -> list[bool]:
        """For each row: whether a guard, its conditioning or a prediction has been NaN."""
        return [row.invalid for row in self._rows]

    @property
    def spoilt(self) -> list[bool]:
        """For each row: whether its conditioning or a prediction was NaN: it then has no image."""
        return [row.spoilt for row in self._rows]

    def use(self, stacks: ImageStacks) -> None:
        """Replace the guards. Only between requests: live rows are dropped.

        Raises ValueError for guards that do not fit the model; the previous ones then stay in use.
        """
        prompts = PromptGuarding(self.family, stacks)
        try:
            denoising = Denoising(
                self.family,
                stacks,
                self._sampler,
                forward=self._rows_per_forward,
                one_by_one=self._one_by_one,
            )
        except BaseException:
            prompts.close()
            raise
        for hooked in self._hooked:
            hooked.close()
        self._hooked = [prompts, denoising]
        self._stacks, self._prompts, self._denoising = stacks, prompts, denoising
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._rows: list[RowState] = []
        self._denoising.reset()
        self._slots = Slots(self.capacity, self._plain, self.family.noise([0]))
        self._layout: Layout | None = None

    def close(self) -> None:
        """Drop all rows and take every hook off the networks."""
        self.reset()
        for hooked in self._hooked:
            hooked.close()

    def check(self, start: ImageStart) -> None:
        """Raise ValueError for a row that cannot be added, whatever the batch holds."""
        self._trajectories.check(start.steps, start.initial)
        if not 0 <= start.seed < SEED_LIMIT:
            raise ValueError(f"a seed must lie in 0..2**63-1, not {start.seed}")
        if not np.isfinite(start.guidance):
            raise ValueError("guidance must be a finite number")
        trajectory = self._trajectories.find(start.steps, start.initial)
        self._denoising.latents.check(start.guards, trajectory)
        self.family.check_learned(start.prompt, start.embeddings)
        guidance = self._denoising.guidance
        guiding = [guard for guard in start.guards if guard.acts and guard.name in guidance]
        if guiding and self.family.distilled:
            name = guiding[0].name
            raise ValueError(f"{name} acts on guidance, which this model has as an input")
        if guiding and start.guidance <= 1:
            name = guiding[0].name
            raise ValueError(f"{name} acts on guidance, which takes a scale of more than 1")
        if guiding:
            guidance.check(guiding, trajectory.schedule.sigma)

    # guards may take gradients, which tensors made in inference mode do not
    @torch.inference_mode(False)
    @torch.no_grad()
    def start(self, starts: Sequence[ImageStart]) -> list[dict[str, ImageReading]]:
        """Add rows after the live ones; returns the readings of the guards of each, by name.

        Raises ValueError, without changing any row, for more rows than the capacity or a row that
        fails `check`.
        """
        total = self.rows + len(starts)
        if total > self.capacity:
            raise ValueError(f"{total} rows do not fit a capacity of {self.capacity}")
        for start in starts:
            self.check(start)
        if not starts:
            return []
        groups = self._groups(starts)
        prepared = [self._prepared(group) for group in groups]
        for group, (applied, negative) in zip(groups, prepared, strict=True):
            self._place(group, applied, negative)
        self._layout = None
        return [readings for applied, _ in prepared for readings in applied.readings]

    @torch.inference_mode()
    def step(self) -> list[int]:
        """One evaluation of the network for every row; returns the rows that are complete.

        `readings` then include those of the finished latents of these rows. Raises ValueError if
        a complete row has not been dropped.
        """
        if complete := self._complete():
            raise ValueError(f"rows {complete} are complete: take their images and drop them")
        if not self._rows:
            return []
        slots, count = self._slots, self.rows
        generated = [row.trajectory.generating - row.left for row in self._rows]
        if self._denoising.guidance.advance(generated):
            self._layout = None
        latents, carry = self._denoising.step(
            self._current_layout(),
            slots.latents[:count],
            slots.carry[:count],
            slots.done[:count],
            generated,
        )
        slots.advance(latents, carry)
        finite = slots.latents[:count].isfinite().flatten(1).all(1).tolist()
        for index, (row, is_finite) in enumerate(zip(self._rows, finite, strict=True)):
            row.left -= 1
            row.spoilt |= not is_finite
            if row.trajectory.inverting and row.left == row.trajectory.generating:
                self._begin_generating(index)
        complete = self._complete()
        self._inspect_output(complete)
        return complete

    @torch.inference_mode()
    def images(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        """`[rows, height, width, 3]`; videos `[rows, frames, height, width, 3]`.

        Raises ValueError for a row that is not complete, or whose latents have become NaN.
        """
        for row in rows:
            if self._rows[row].left or self._rows[row].spoilt:
                why = "has met NaN" if self._rows[row].spoilt else "is not complete"
                raise ValueError(f"row {row} {why}: it has no image")
        groups = self._groups(rows)
        return np.concatenate([self.family.decode(self._slots.latents[group]) for group in groups])

    def inverting(self, row: int) -> bool:
        """Whether a row is still being inverted, from its image to noise."""
        return self._rows[row].inverts

    def readings(self, row: int) -> dict[str, ImageReading]:
        """The readings of the guards of `row`; none is valid once the latents are NaN."""
        state = self._rows[row]
        readings = {**state.readings, **self._denoising.latents.readings(row)}
        if not state.spoilt:
            return readings
        return {name: replace(reading, valid=False) for name, reading in readings.items()}

    def masks(self, row: int) -> dict[str, Tensor]:
        """The mask of what each latent guard has written on `row`, by guard name:
        `[(frames,) height, width]` in 0..1, on the latents' grid."""
        return self._denoising.latents.masks(row)

    @torch.no_grad()
    def drop(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Remove rows; returns the moves (source, target) that closed the holes, in order."""
        moves = []
        guidance, latents = self._denoising.guidance, self._denoising.latents
        for row in sorted(set(rows), reverse=True):
            last = self.rows - 1
            if row != last:
                self._slots.move(last, row)
                guidance.move(last, row)
                latents.move(last, row)
                self._rows[row] = self._rows[last]
                moves.append((last, row))
            guidance.remove(last)
            latents.remove(last)
            self._rows.pop()
        self._layout = None
        return moves

    def _complete(self) -> list[int]:
        return [index for index, row in enumerate(self._rows) if not row.left]

    def _groups(self, items: Sequence[T]) -> list[list[T]]:
        """The groups that are encoded, guarded or decoded at once: single items where a result must
        not depend on the batch."""
        return [[item] for item in items] if self._one_by_one else [list(items)] if items else []

    # -- fresh rows -----------------------------------------------------------------------------

    def _prepared(self, starts: Sequence[ImageStart]) -> tuple[Applied, Conditioning]:
        """The guarded and the unconditional conditionings of these rows."""
        guarded = self._prompts(
            [start.prompt for start in starts],
            [start.guards for start in starts],
            [start.embeddings for start in starts],
        )
        negative = [start.negative_prompt for start in starts]
        unconditional = self._prompts.unconditional(
            negative,
            [start.guards for start in starts],
            guarded.applied.readings,
            None if any(negative) else self._plain,
        )
        return guarded.applied, unconditional

    def _place(
        self, starts: Sequence[ImageStart], applied: Applied, negative: Conditioning
    ) -> None:
        first, denoising = self.rows, self._denoising
        noise = self.family.noise([start.seed for start in starts])
        initial = [start.initial for start in starts]
        trajectories = [self._trajectories.find(start.steps, start.initial) for start in starts]
        samples = self._trajectories.samples([start.steps for start in starts], initial, noise)
        rows = slice(first, first + len(starts))
        self._slots.put(rows, applied.text, negative, samples)
        finite_samples = samples.isfinite().flatten(1).all(1)
        finite = (applied.text.finite() & negative.finite() & finite_samples).tolist()
        for index, (start, readings) in enumerate(zip(starts, applied.readings, strict=True)):
            guiding = [
                guard
                for guard in acting(start.guards, readings, self._stacks.prompts.names)
                if guard.name in denoising.guidance
            ]
            trajectory = trajectories[index]
            denoising.guidance.add(
                first + index,
                [] if trajectory.inverting else guiding,
                trajectory.schedule.sigma if guiding else None,
            )
            writing = [guard for guard in start.guards if guard.name in denoising.latents]
            denoising.latents.add(first + index, writing, trajectory, start.seed)
            output = self._stacks.output
            self._rows.append(
                RowState(
                    left=trajectory.evaluations,
                    trajectory=trajectory,
                    guidance=start.guidance,
                    guiding=guiding,
                    readings=readings,
                    inspecting=[guard for guard in start.guards if guard.name in output],
                    overlaying=acting(start.guards, readings, denoising.overlays.names),
                    spoilt=not finite[index],
                )
            )

    # -- finished rows --------------------------------------------------------------------------

    def _inspect_output(self, complete: Sequence[int]) -> None:
        """Let the guards of these rows read their finished latents."""
        latents = self._denoising.latents
        for group in self._groups(latents.written(complete)):
            latents.settle(group, self.finished(group))
        inspected = [row for row in complete if self._rows[row].inspecting]
        for group in self._groups(inspected):
            rows = [self._rows[row] for row in group]
            output = self._stacks.output.read(
                self.finished(group), [row.inspecting for row in rows]
            )
            for row, readings in zip(rows, output, strict=True):
                position = row.trajectory.generating
                late = {
                    name: replace(reading, position=position) for name, reading in readings.items()
                }
                row.readings = {**row.readings, **late}

    @torch.no_grad()
    def finished(self, rows: Sequence[int]) -> Tensor:
        """The current latents of these rows, `[rows, channels, (frames,) height, width]`."""
        return self.family.unpacked(self._slots.latents[list(rows)])

    # -- one step -------------------------------------------------------------------------------

    def _current_layout(self) -> Layout:
        """The layout of the running batch, computed again only when rows were added or removed, or
        guards came into their windows or left them."""
        if self._layout is None:
            rows = slice(0, self.rows)
            self._layout = self._denoising.layout(
                self._slots.text.select(rows),
                self._slots.negative,
                [row.scale for row in self._rows],
                [row.trajectory for row in self._rows],
                [row.overlaying for row in self._rows],
            )
        return self._layout

    def _begin_generating(self, index: int) -> None:
        """Generate a row whose inversion is complete, with its guidance from now on."""
        row = self._rows[index]
        self._denoising.guidance.add(index, row.guiding, row.trajectory.schedule.sigma)
        self._layout = None
