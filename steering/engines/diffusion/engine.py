"""Continuous batching for a diffusion model, with guards on each row.

Rows stand at timesteps of their own, with numbers of steps, guidance and seeds of their own, and
share the network's forwards: a new row joins between two steps. The engine knows rows only: a
scheduler above it queues requests and talks to clients. Rows are kept dense (`0..n-1`); `drop`
fills holes with the last row.

*One row, one image.* A row's noise comes from a generator of its own, and with the fixed size of
a forward that is the default on a CPU its image has the same bits alone and in company. Where all
rows go through one forward (the default on a GPU), kernels sum in an order that depends on the
number of rows: latents then agree within 1e-4 of their largest value in float32, and few pixels
differ, by one level of 255.
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

    `guidance` over 1 is classifier-free guidance's scale (or the input of a network distilled with
    it); an empty `negative_prompt` is the pipeline's own default. `embeddings` are vectors of the
    text encoder's input embeddings, `[vectors, width]`, for placeholders `<name>` in the prompt
    (`steering/images/textual_inversion.py`). `beginning` None is noise of `seed`.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 25
    guidance: float = 7.5
    guards: Sequence[RowGuard] = ()
    embeddings: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    beginning: InitialState | None = None


class DiffusionEngine:
    """Runs one pipeline; `capacity` rows at most. Not thread-safe.

    `forward` is the number of rows in one forward of the network (`forwards.py`): "auto" is
    `forwards.ROWS` on a CPU; None takes all rows at once, the default elsewhere. With a number,
    prompts and images are encoded, guarded and decoded one by one too.

    Raises ValueError for a pipeline, a scheduler or guards that do not go.
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
        self._rows_of_forward = None if forward is None else int(forward)
        self._apart = forward is not None
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
        """For each row: has a guard, its conditioning or a prediction met NaN."""
        return [row.invalid for row in self._rows]

    @property
    def spoilt(self) -> list[bool]:
        """For each row: has its conditioning or a prediction met NaN, so that it has no image."""
        return [row.spoilt for row in self._rows]

    def use(self, stacks: ImageStacks) -> None:
        """Serve with these guards from now on. Only between requests: live rows are dropped.

        Raises ValueError for guards that do not fit the model; those before stay in use then.
        """
        prompts = PromptGuarding(self.family, stacks)
        try:
            denoising = Denoising(
                self.family,
                stacks,
                self._sampler,
                forward=self._rows_of_forward,
                apart=self._apart,
            )
        except BaseException:
            prompts.close()
            raise
        for before in self._hooked:
            before.close()
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
        """Let go of all rows, and of the networks: nothing of them is hooked or changed."""
        self.reset()
        for hooked in self._hooked:
            hooked.close()

    def check(self, start: ImageStart) -> None:
        """Raise ValueError where a row cannot be added, whatever stands in the batch."""
        self._trajectories.check(start.steps, start.beginning)
        if not 0 <= start.seed < SEED_LIMIT:
            raise ValueError(f"a seed must lie in 0..2**63-1, not {start.seed}")
        if not np.isfinite(start.guidance):
            raise ValueError("guidance must be a finite number")
        self._denoising.latents.check(
            start.guards, self._trajectories.find(start.steps, start.beginning)
        )
        self.family.check_learned(start.prompt, start.embeddings)
        acting = [g.name for g in start.guards if g.acts and g.name in self._denoising.guidance]
        if acting and self.family.distilled:
            raise ValueError(f"{acting[0]} acts on guidance, which this model has as an input")
        if acting and start.guidance <= 1:
            raise ValueError(f"{acting[0]} acts on guidance, which takes a scale of more than 1")

    # guards may take gradients, which tensors made in inference mode do not
    @torch.inference_mode(False)
    @torch.no_grad()
    def start(self, starts: Sequence[ImageStart]) -> list[dict[str, ImageReading]]:
        """Add rows behind the live ones; returns what the guards of each have read.

        Raises ValueError where they do not fit or `check` fails: no row has changed then.
        """
        together = self.rows + len(starts)
        if together > self.capacity:
            raise ValueError(f"{together} rows do not fit a capacity of {self.capacity}")
        for start in starts:
            self.check(start)
        if not starts:
            return []
        parts = self._parts(starts)
        prepared = [self._prepared(part) for part in parts]
        for part, (applied, negative) in zip(parts, prepared, strict=True):
            self._place(part, applied, negative)
        self._layout = None
        return [readings for applied, _ in prepared for readings in applied.readings]

    @torch.inference_mode()
    def step(self) -> list[int]:
        """One evaluation of the network for every row; returns the rows that are complete.

        `readings` then has what their guards have seen in the finished latents. Raises ValueError
        where a row that is complete has not been dropped.
        """
        if complete := self._complete():
            raise ValueError(f"rows {complete} are complete: take their images and drop them")
        if not self._rows:
            return []
        slots, count = self._slots, self.rows
        latents, carry = self._denoising.step(
            self._laid_out(),
            slots.latents[:count],
            slots.carry[:count],
            slots.done[:count],
            [row.trajectory.drawing - row.left for row in self._rows],
        )
        slots.advance(latents, carry)
        finite = slots.latents[:count].isfinite().flatten(1).all(1).tolist()
        for index, (row, is_finite) in enumerate(zip(self._rows, finite, strict=True)):
            row.left -= 1
            row.spoilt |= not is_finite
            if row.trajectory.inverting and row.left == row.trajectory.drawing:
                self._turn_to_drawing(index)
        complete = self._complete()
        self._inspect_output(complete)
        return complete

    @torch.inference_mode()
    def images(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        """`[rows, height, width, 3]`; videos `[rows, frames, height, width, 3]`.

        Raises ValueError for a row that is not complete, or that has met NaN on its way.
        """
        for row in rows:
            if self._rows[row].left or self._rows[row].spoilt:
                why = "has met NaN" if self._rows[row].spoilt else "is not complete"
                raise ValueError(f"row {row} {why}: it has no image")
        latents = [self._slots.latents[part] for part in self._parts(rows)]
        return np.concatenate([self.family.decode(part) for part in latents])

    def inverting(self, row: int) -> bool:
        """Whether a row is still on its way from its image to noise."""
        return self._rows[row].inverts

    def readings(self, row: int) -> dict[str, ImageReading]:
        """The readings of the guards of `row`; none is valid once the row has met NaN."""
        state = self._rows[row]
        readings = {**state.readings, **self._denoising.latents.readings(row)}
        if not state.spoilt:
            return readings
        return {name: replace(reading, valid=False) for name, reading in readings.items()}

    def masks(self, row: int) -> dict[str, Tensor]:
        """Where latent guards have written on `row`, by guard: `[(frames,) height, width]` in 0..1,
        on the latents' grid."""
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

    def _parts(self, items: Sequence[T]) -> list[list[T]]:
        """What is encoded, guarded or decoded at once: one by one where company must not tell."""
        return [[item] for item in items] if self._apart else [list(items)] if items else []

    # -- fresh rows -----------------------------------------------------------------------------

    def _prepared(self, starts: Sequence[ImageStart]) -> tuple[Applied, Conditioning]:
        """The conditionings to generate the rows with, and away from."""
        guarded = self._prompts(
            [start.prompt for start in starts],
            [start.guards for start in starts],
            [start.embeddings for start in starts],
        )
        negative = [start.negative_prompt for start in starts]
        if any(negative):
            return guarded.applied, self.family.unconditional(negative)
        return guarded.applied, self._plain.expand(len(starts))

    def _place(
        self, starts: Sequence[ImageStart], applied: Applied, negative: Conditioning
    ) -> None:
        first, denoising = self.rows, self._denoising
        noise = self.family.noise([start.seed for start in starts])
        trajectories = [self._trajectories.find(start.steps, start.beginning) for start in starts]
        begun = [start.beginning for start in starts]
        samples = self._trajectories.samples([start.steps for start in starts], begun, noise)
        rows = slice(first, first + len(starts))
        self._slots.put(rows, applied.text, negative, samples)
        known = samples.isfinite().flatten(1).all(1)
        finite = (applied.text.finite() & negative.finite() & known).tolist()
        for index, (start, readings) in enumerate(zip(starts, applied.readings, strict=True)):
            guiding = [
                guard
                for guard in acting(start.guards, readings, self._stacks.prompts.names)
                if guard.name in denoising.guidance
            ]
            trajectory = trajectories[index]
            denoising.guidance.add(first + index, [] if trajectory.inverting else guiding)
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
        for part in self._parts(latents.written(complete)):
            latents.settle(part, self.finished(part))
        inspected = [row for row in complete if self._rows[row].inspecting]
        for part in self._parts(inspected):
            rows = [self._rows[row] for row in part]
            output = self._stacks.output.read(self.finished(part), [row.inspecting for row in rows])
            for row, readings in zip(rows, output, strict=True):
                position = row.trajectory.drawing
                late = {
                    name: replace(reading, position=position) for name, reading in readings.items()
                }
                row.readings = {**row.readings, **late}

    @torch.no_grad()
    def finished(self, rows: Sequence[int]) -> Tensor:
        """The latents of these rows as they stand, `[rows, channels, (frames,) height, width]`."""
        return self.family.unpacked(self._slots.latents[list(rows)])

    # -- one step -------------------------------------------------------------------------------

    def _laid_out(self) -> Layout:
        """The running batch, put together again only where a row has come or gone."""
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

    def _turn_to_drawing(self, index: int) -> None:
        """From now on a row that was inverted is generated, with its guidance."""
        self._denoising.guidance.add(index, self._rows[index].guiding)
        self._layout = None
