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

from steering.engines.diffusion.families import Family
from steering.engines.diffusion.forwards import ROWS, Forwards
from steering.engines.diffusion.rows import RowState, Slots, beside
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.engines.diffusion.sampling.trajectories import InitialState, Trajectories
from steering.engines.diffusion.seams.latents import DenoisingStep, LatentSeam
from steering.engines.diffusion.seams.projections import ProjectionSeam
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning, concatenated
from steering.images.embedding import Applied, EmbeddingBank, ImageReading
from steering.images.guidance import Guidance, GuidanceGuards
from steering.images.latent import LatentGuards
from steering.images.output import OutputBank
from steering.images.projection import OverlayBank

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


@dataclass(frozen=True)
class _Batch:
    """What stays the same from step to step while no row comes or goes.

    The network's rows are all conditional ones, then the unconditional ones of `guided [n]`, then
    one a pair of the guidance; `source` says whose latents each takes, `plain` which of them is a
    row's unconditional one, or its only one. The rest is `[rows]`: `ahead` evaluations of a row's
    `whole` schedule lay behind it when it began, fewer than none where it inverts an image first.
    """

    text: Conditioning
    source: Tensor
    plain: Sequence[int]
    guided: Tensor
    guidance: Tensor
    offset: Tensor
    ahead: Tensor
    whole: Tensor


class DiffusionEngine:
    """Runs one pipeline; `capacity` rows at most. Not thread-safe.

    `guides` are those screens of `bank` that act on the guidance, `overlays` has those guards of it
    that act on the network's projections; `erasers` look at a row's latents on their way and write
    there; the guards of `finished` look at them when the row is complete, before anyone sees its
    image. `forward` is the number of
    rows in one forward of the network (`forwards.py`): "auto" is `forwards.ROWS` on a CPU; None
    takes all rows at once, the default elsewhere. With a number, prompts and images are encoded,
    guarded and decoded one by one too.

    Raises ValueError for a pipeline, a scheduler, overlays or an eraser that does not go.
    """

    def __init__(
        self,
        family: Family,
        bank: EmbeddingBank,
        *,
        capacity: int,
        guides: Sequence[GuidanceGuards] = (),
        finished: OutputBank | None = None,
        overlays: OverlayBank | None = None,
        erasers: Sequence[LatentGuards] = (),
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
        self._projections = ProjectionSeam(family.denoiser, family.cross_attention())
        self._device = family.device
        self._sampler = Sampler(family.scheduler, family.arrange, device=self._device)
        self._sampler.schedule(family.defaults[0])
        self._paths = Trajectories(self._sampler, family)
        self._erasing = LatentSeam((), family)
        with torch.no_grad():
            self._plain = family.unconditional([""])
        self.use(bank, guides, finished, overlays=overlays, erasers=erasers)

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

    def use(
        self,
        bank: EmbeddingBank,
        guides: Sequence[GuidanceGuards] = (),
        finished: OutputBank | None = None,
        *,
        overlays: OverlayBank | None = None,
        erasers: Sequence[LatentGuards] = (),
    ) -> None:
        """Serve with these from now on. Only between requests: live rows are dropped.

        Raises ValueError for overlays or an eraser that does not go with the model.
        """
        self._projections.install(overlays or OverlayBank())
        self._bank, self._guides = bank, tuple(guides)
        self._finished = finished or OutputBank()
        erasing = LatentSeam(erasers, self.family, apart=self._apart)
        self._erasing.close()
        self._erasing = erasing
        self._forwards = Forwards(
            self.family, self._rows_of_forward, [self._projections, self._erasing.seam]
        )
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._rows: list[RowState] = []
        self._guidance = Guidance(self._guides, self._device)
        self._erasing.reset()
        self._slots = Slots(self.capacity, self._plain, self.family.noise([0]))
        self._batch: _Batch | None = None

    def close(self) -> None:
        """Let go of all rows, and of the network: nothing of it is hooked or changed."""
        self.reset()
        self._erasing.close()
        self._projections.remove()

    def check(self, start: ImageStart) -> None:
        """Raise ValueError where a row cannot be added, whatever stands in the batch."""
        self._paths.check(start.steps, start.beginning)
        if not 0 <= start.seed < SEED_LIMIT:
            raise ValueError(f"a seed must lie in 0..2**63-1, not {start.seed}")
        if not np.isfinite(start.guidance):
            raise ValueError("guidance must be a finite number")
        self._erasing.check(start.guards, self._paths.find(start.steps, start.beginning))
        self.family.check_learned(start.prompt, start.embeddings)
        acting = [g.name for g in start.guards if g.acts and g.name in self._guidance]
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
        self._batch = None
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
        slots, count, batch = self._slots, self.rows, self._joined()
        at = batch.offset + slots.done[:count]
        timesteps, scale = self._sampler.inputs(at)
        latents = slots.latents[:count]
        inputs, source = latents * beside(scale, latents), batch.source
        self._erasing.look([row.path.drawing - row.left for row in self._rows], batch.plain)
        said = self._forwards(inputs[source], timesteps[source], batch.text, batch.guidance[source])
        unconditional, guided = self._guided(said, batch)
        moved, carry = self._sampler.step(at, latents, guided, slots.carry[:count])
        slots.advance(
            *self._erasing.write(DenoisingStep(latents, unconditional, guided, moved, carry))
        )
        finite = slots.latents[:count].isfinite().flatten(1).all(1).tolist()
        for index, (row, is_finite) in enumerate(zip(self._rows, finite, strict=True)):
            row.left -= 1
            row.spoilt |= not is_finite
            if row.path.inverting and row.left == row.path.drawing:
                self._turn(index)
        complete = self._complete()
        self._look(complete)
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
        """What the guards of `row` have read; none is valid once the row has met NaN."""
        known = self._rows[row]
        told = {**known.readings, **self._erasing.readings(row)}
        if not known.spoilt:
            return told
        return {name: replace(each, valid=False) for name, each in told.items()}

    def masks(self, row: int) -> dict[str, Tensor]:
        """Where erasers have written on `row`, by guard: `[(frames,) height, width]` in 0..1, on
        the latents' grid."""
        return self._erasing.masks(row)

    @torch.no_grad()
    def drop(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Remove rows; returns the moves (source, target) that closed the holes, in order."""
        moves = []
        for row in sorted(set(rows), reverse=True):
            last = self.rows - 1
            if row != last:
                self._slots.move(last, row)
                self._guidance.move(last, row)
                self._erasing.move(last, row)
                self._rows[row] = self._rows[last]
                moves.append((last, row))
            self._guidance.remove(last)
            self._erasing.remove(last)
            self._rows.pop()
        self._batch = None
        return moves

    def _complete(self) -> list[int]:
        return [index for index, row in enumerate(self._rows) if not row.left]

    def _parts(self, items: Sequence[T]) -> list[list[T]]:
        """What is encoded, guarded or decoded at once: one by one where company must not tell."""
        return [[item] for item in items] if self._apart else [list(items)] if items else []

    # -- fresh rows -----------------------------------------------------------------------------

    def _prepared(self, starts: Sequence[ImageStart]) -> tuple[Applied, Conditioning]:
        """What to draw the rows with, and away from what."""
        prompts = [start.prompt for start in starts]
        guards = [
            [guard for guard in start.guards if not self._looks_late(guard)] for start in starts
        ]
        learned = [start.embeddings for start in starts]
        overflow = self.family.overflow(prompts, learned) if any(guards) else ()
        applied = self._bank.apply(self.family.encode(prompts, learned), guards, overflow)
        negative = [start.negative_prompt for start in starts]
        if any(negative):
            return applied, self.family.unconditional(negative)
        return applied, self._plain.expand(len(starts))

    def _place(
        self, starts: Sequence[ImageStart], applied: Applied, negative: Conditioning
    ) -> None:
        first = self.rows
        noise = self.family.noise([start.seed for start in starts])
        paths = [self._paths.find(start.steps, start.beginning) for start in starts]
        begun = [start.beginning for start in starts]
        samples = self._paths.samples([start.steps for start in starts], begun, noise)
        rows = slice(first, first + len(starts))
        self._slots.put(rows, applied.text, negative, samples)
        known = samples.isfinite().flatten(1).all(1)
        finite = (applied.text.finite() & negative.finite() & known).tolist()
        for index, (start, readings) in enumerate(zip(starts, applied.readings, strict=True)):
            guides = [
                guard for guard in start.guards if guard.acts and guard.name in self._guidance
            ]
            fired = [guard for guard in guides if readings[guard.name].fired]
            path = paths[index]
            self._guidance.add(first + index, [] if path.inverting else fired)
            erasing = [guard for guard in start.guards if guard.name in self._erasing]
            self._erasing.add(first + index, erasing, path, start.seed)
            overlaid = [
                guard
                for guard in start.guards
                if guard.acts and guard.name in self._projections and readings[guard.name].fired
            ]
            self._rows.append(
                RowState(
                    left=path.evaluations,
                    path=path,
                    guidance=start.guidance,
                    guides=fired,
                    readings=readings,
                    watching=[guard for guard in start.guards if guard.name in self._finished],
                    overlaid=overlaid,
                    spoilt=not finite[index],
                )
            )

    def _looks_late(self, guard: RowGuard) -> bool:
        """Whether it looks at latents, not at the prompt."""
        return guard.name in self._finished or guard.name in self._erasing

    # -- finished rows --------------------------------------------------------------------------

    def _look(self, complete: Sequence[int]) -> None:
        """Let the guards of these rows see their finished latents."""
        for part in self._parts(self._erasing.written(complete)):
            self._erasing.settle(part, self.finished(part))
        watched = [row for row in complete if self._rows[row].watching]
        for part in self._parts(watched):
            rows = [self._rows[row] for row in part]
            seen = self._finished.read(self.finished(part), [row.watching for row in rows])
            for row, more in zip(rows, seen, strict=True):
                drawn = row.path.drawing
                at = {name: replace(told, position=drawn) for name, told in more.items()}
                row.readings = {**row.readings, **at}

    @torch.no_grad()
    def finished(self, rows: Sequence[int]) -> Tensor:
        """The latents of these rows as they stand, `[rows, channels, (frames,) height, width]`."""
        return self.family.unpacked(self._slots.latents[list(rows)])

    # -- one step -------------------------------------------------------------------------------

    def _joined(self) -> _Batch:
        """The running batch, put together again only where a row has come or gone."""
        if self._batch is None:
            count, rows, device = self.rows, self._rows, self._device
            free = [i for i, row in enumerate(rows) if row.scale > 1]
            free = [] if self.family.distilled else free
            guided = _integers(free, device)
            without = {row: count + i for i, row in enumerate(free)}
            texts = [self._slots.text.select(slice(0, count)), self._slots.negative.select(guided)]
            sources = [torch.arange(count, device=device), guided]
            if len(self._guidance.rows):
                texts.append(self._guidance.text)
                sources.append(self._guidance.rows)
            source = torch.cat(sources)
            self._projections.carry([row.overlaid for row in rows], source)
            self._batch = _Batch(
                text=concatenated(texts),
                source=source,
                plain=[without.get(row, row) for row in range(count)],
                guided=guided,
                guidance=torch.tensor([row.scale for row in rows], device=device),
                offset=_integers([row.path.offset for row in rows], device),
                ahead=_integers([row.path.skipped - row.path.inverting for row in rows], device),
                whole=_integers([row.path.whole for row in rows], device),
            )
        return self._batch

    def _turn(self, index: int) -> None:
        """From now on a row that was inverted is drawn, with the guidance that it was to have."""
        self._guidance.add(index, self._rows[index].guides)
        self._batch = None

    def _guided(self, said: Tensor, batch: _Batch) -> tuple[Tensor, Tensor]:
        """`u`, and classifier-free guidance `u + s (c - u)`, row by row, as guides make it."""
        count, guided = self.rows, batch.guided
        conditional, rest = said[:count], said[count:]
        # without guidance u is c, and so is the result
        unconditional = conditional.index_copy(0, guided, rest[: len(guided)])
        if not len(self._guidance.rows):
            scale = beside(batch.guidance, said)
            return unconditional, unconditional + scale * (conditional - unconditional)
        return unconditional, self._guidance.combine(
            unconditional,
            conditional,
            rest[len(guided) :],
            scale=batch.guidance,
            progress=(self._slots.done[:count] + batch.ahead) / batch.whole,
        )


def _integers(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=device)
