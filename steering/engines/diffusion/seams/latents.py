"""What erasers do to the rows of a running batch: looks, masks and writes between two steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steering.engines.diffusion.families import Family
from steering.engines.diffusion.rows import beside
from steering.engines.diffusion.sampling.estimates import Estimates, estimates_of
from steering.engines.diffusion.sampling.trajectories import Trajectory
from steering.engines.diffusion.seams.attention import AttentionSeam
from steering.hidden.rows import RowGuard
from steering.images.embedding import ImageReading
from steering.images.latent import LatentEvidence, LatentGuards, Localization


@dataclass(frozen=True)
class DenoisingStep:
    """One evaluation of the network for all rows, float32.

    `latents` went in, `unconditional` and `guided` came out, `moved` and `carry` is what the
    sampler makes of that: all `[rows, ...]`.
    """

    latents: Tensor
    unconditional: Tensor
    guided: Tensor
    moved: Tensor
    carry: Tensor


@dataclass(eq=False)
class _Pair:
    """A guard on a row: column `column` of `eraser`, which looks before the evaluations `looks`."""

    row: int
    eraser: int
    column: int
    guard: RowGuard
    tables: Estimates
    seed: int
    looks: frozenset[int]
    reading: ImageReading | None = None
    mask: Tensor | None = None
    """The union of its masks so far, `[(frames,) height, width]`."""

    def read(self, score: float, position: int) -> bool:
        """Take in what it has seen at a look; returns whether it fires there."""
        fires = math.isfinite(score) and score > self.guard.threshold
        before = self.reading or ImageReading(-math.inf, self.guard.threshold, fired=False)
        self.reading = replace(
            before,
            score=max(before.score, score) if math.isfinite(score) else before.score,
            valid=before.valid and math.isfinite(score),
            fired=before.fired or fires,
            resolved=before.resolved and not (fires and not self.guard.acts),
            position=position if fires and not before.fired else before.position,
        )
        return fires

    def broke(self, mask: Tensor, peak: float) -> None:
        """Take in that it has written over `mask`; a peak that is no number tells of no place."""
        assert self.reading is not None
        mask = mask.detach()
        self.mask = mask if self.mask is None else torch.maximum(self.mask, mask)
        before, told = self.reading.peak, math.isfinite(peak)
        self.reading = replace(
            self.reading,
            valid=self.reading.valid and told,
            steps=self.reading.steps + 1,
            area=float(self.mask.mean()),
            peak=max(peak, peak if before is None else before) if told else before,
        )

    def settle(self, score: float) -> None:
        """Take in what it sees of the finished image."""
        assert self.reading is not None
        finite = math.isfinite(score)
        self.reading = replace(
            self.reading,
            after=score if finite else None,
            valid=self.reading.valid and finite,
            resolved=finite and score <= self.guard.threshold,
        )


class LatentSeam:
    """The erasers of one model and the pairs of its running batch. Not thread-safe.

    Rows are added, moved and removed as in `steering.hidden.table.Table`. One step of an engine is
    `look`, the forwards with `seam` among theirs, then `write`. `apart`: what is found on a row
    must not depend on its company, so that each is looked at by itself. Raises ValueError for a
    guard that reads a layer which the model does not have or that takes another number of channels,
    and for two of one name.
    """

    def __init__(
        self, erasers: Sequence[LatentGuards], family: Family, *, apart: bool = False
    ) -> None:
        self._erasers, self._family, self._apart = tuple(erasers), family, apart
        if strange := [e.channels for e in erasers if e.channels != family.channels]:
            raise ValueError(
                f"an eraser takes latents of {strange[0]} channels, the model's have "
                f"{family.channels}"
            )
        self._tables: dict[int, Estimates] = {}
        """By the place of a path in the sampler's tables."""
        self._index = {
            name: (number, column)
            for number, eraser in enumerate(erasers)
            for column, name in enumerate(eraser.names)
        }
        if len(self._index) != sum(len(eraser.names) for eraser in erasers):
            raise ValueError("two guards of a model's erasers have the same name")
        reads = [read for eraser in erasers for own in eraser.probes for read in own]
        self.seam = AttentionSeam(family, reads)
        numbers = iter(range(len(reads)))
        self._reads = [[[next(numbers) for _ in own] for own in e.probes] for e in erasers]
        """Eraser → column → the numbers of its reads."""
        self.reset()

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def reset(self) -> None:
        """Forget all rows."""
        self._pairs: list[_Pair] = []
        self._due: list[_Pair] = []
        self._done: Sequence[int] = ()

    def close(self) -> None:
        """Take the hooks off the network."""
        self.seam.remove()

    def check(self, guards: Sequence[RowGuard], path: Trajectory) -> None:
        """Raise ValueError where these guards cannot follow a row on its path."""
        for guard in guards:
            if guard.name in self and not self._looks(guard.name, self._told(path)):
                raise ValueError(
                    f"{guard.name} finds no evaluation of {path.drawing} at which it could look: "
                    "ask for more steps"
                )

    def add(self, row: int, guards: Sequence[RowGuard], path: Trajectory, seed: int) -> None:
        """Put these guards on a fresh row. Raises KeyError for an unknown one."""
        self.remove(row)
        for guard in guards:
            eraser, column = self._index[guard.name]
            tables = self._told(path)
            looks = self._looks(guard.name, tables)
            self._pairs.append(_Pair(row, eraser, column, guard, tables, seed, looks))

    def move(self, source: int, target: int) -> None:
        """Let the request on row `source` live on row `target` from now on."""
        self.remove(target)
        for pair in self._pairs:
            if pair.row == source:
                pair.row = target

    def remove(self, row: int) -> None:
        """Forget the request on `row`."""
        self._pairs = [pair for pair in self._pairs if pair.row != row]

    def readings(self, row: int) -> dict[str, ImageReading]:
        """What the guards of `row` have read so far."""
        own = (pair for pair in self._pairs if pair.row == row)
        return {pair.guard.name: pair.reading for pair in own if pair.reading is not None}

    def masks(self, row: int) -> dict[str, Tensor]:
        """Where the guards of `row` have written, `[(frames,) height, width]` in 0..1."""
        own = (pair for pair in self._pairs if pair.row == row)
        return {pair.guard.name: pair.mask for pair in own if pair.mask is not None}

    # -- one step ---------------------------------------------------------------------------------

    def look(self, done: Sequence[int], plain: Sequence[int]) -> None:
        """Before the forwards: which pairs look.

        `done[row]` evaluations that draw lie behind a row, and `plain[row]` is the row of the
        network whose attention is read: the one without the prompt, where there is one.
        """
        self._done = done
        self._due = [pair for pair in self._pairs if done[pair.row] in pair.looks]
        asked = [(plain[pair.row], read) for pair in self._due for read in self._asked(pair)]
        self.seam.ask([row for row, _ in asked], [read for _, read in asked])

    def write(self, step: DenoisingStep) -> tuple[Tensor, Tensor]:
        """After them: the samples and carries to go on with, `[rows, ...]`.

        Rows in which nothing fires keep their bits.
        """
        moved, carry = step.moved, step.carry
        if not self._due:
            return moved, carry
        attended = torch.split(self.seam.scores(), [len(self._asked(pair)) for pair in self._due])
        together: dict[tuple[int, int], list[int]] = {}
        for i, pair in enumerate(self._due):
            together.setdefault((pair.eraser, pair.row if self._apart else 0), []).append(i)
        for (number, _), own in sorted(together.items()):
            pairs, maps = [self._due[i] for i in own], [attended[i] for i in own]
            moved, carry = self._erase(self._erasers[number], pairs, maps, step, moved, carry)
        return moved, carry

    def _asked(self, pair: _Pair) -> Sequence[int]:
        """The reads that it takes: none where nobody is to know the place."""
        return self._reads[pair.eraser][pair.column] if pair.guard.acts else ()

    def written(self, rows: Sequence[int]) -> list[int]:
        """Of these rows, those in which a guard has written."""
        broken = {pair.row for pair in self._pairs if pair.mask is not None}
        return [row for row in rows if row in broken]

    def settle(self, rows: Sequence[int], finished: Tensor) -> None:
        """Let what has fired on rows that are complete see `finished [rows, channels, ...]`."""
        fired = [p for p in self._pairs if p.row in rows and p.mask is not None]
        for number, eraser in enumerate(self._erasers):
            own = [pair for pair in fired if pair.eraser == number]
            if own:
                score, _ = self._sensed(eraser, own, finished, rows)
                for pair, said in zip(own, score.tolist(), strict=True):
                    pair.settle(said)

    def _sensed(
        self, eraser: LatentGuards, pairs: Sequence[_Pair], estimate: Tensor, rows: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Scores `[pairs]` and votes of pairs on `estimate`, whose rows are those of `rows`."""
        columns = sorted({pair.column for pair in pairs})
        score, votes = eraser.sense(estimate, columns)
        row = [rows.index(pair.row) for pair in pairs]
        column = [columns.index(pair.column) for pair in pairs]
        return score[row, column], votes[row, column]

    def _erase(
        self,
        eraser: LatentGuards,
        pairs: Sequence[_Pair],
        attended: Sequence[Tensor],
        step: DenoisingStep,
        moved: Tensor,
        carry: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rows = sorted({pair.row for pair in pairs})
        levels = self._levels({pair.row: pair.tables for pair in pairs}, rows, moved.device)
        estimate, plain = (
            self._estimate(levels, step.latents[rows], out[rows])
            for out in (step.guided, step.unconditional)
        )
        score, votes = self._sensed(eraser, pairs, estimate, rows)
        said = zip(pairs, score.tolist(), strict=True)
        fires = [pair.read(own, self._done[pair.row] + 1) for pair, own in said]
        acting = [i for i, pair in enumerate(pairs) if fires[i] and pair.guard.acts]
        if not acting:
            return moved, carry
        at = torch.tensor([rows.index(pairs[i].row) for i in acting], device=moved.device)
        found = eraser.locate(
            LatentEvidence(
                guard=torch.tensor([pairs[i].column for i in acting], device=moved.device),
                estimate=estimate[at],
                unconditional=plain[at],
                votes=votes[acting],
                attended=torch.cat([attended[i] for i in acting]),
                owner=torch.tensor(
                    [n for n, i in enumerate(acting) for _ in attended[i]], device=moved.device
                ),
            )
        )
        for i, mask, peak in zip(acting, found.mask, found.peak.tolist(), strict=True):
            pairs[i].broke(mask, peak)
        return self._written([pairs[i] for i in acting], found, at, rows, levels, moved, carry)

    def _written(
        self,
        pairs: Sequence[_Pair],
        found: Localization,
        at: Tensor,
        rows: Sequence[int],
        levels: Mapping[str, Tensor],
        moved: Tensor,
        carry: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`z ← (1 - M) z + M (signal z̃_0 + noise ε)`, M the largest of a row's masks."""
        strength = torch.tensor([min(1.0, pair.guard.strength) for pair in pairs]).to(found.mask)
        mask = beside(strength, found.mask) * found.mask
        # [touched] rows from here on
        touched, of = torch.unique(at, return_inverse=True)
        blank = mask.new_zeros(len(touched), *mask.shape[1:])
        total = blank.index_add(0, of, mask)
        index = of.view(-1, *[1] * (mask.ndim - 1)).expand_as(mask)
        largest = blank.scatter_reduce(0, index, mask, "amax")[:, None]
        weighted = mask[:, None] * found.replacement
        instead = weighted.new_zeros(len(touched), *weighted.shape[1:]).index_add(0, of, weighted)
        instead = instead / total[:, None].clamp(min=1e-6)
        own = [rows[i] for i in touched.tolist()]
        seeds = {pair.row: pair.seed for pair in pairs}
        noise = self._family.unpacked(self._family.noise([seeds[row] for row in own], draw=1))
        signal, spread, history = (
            beside(levels[name][touched], instead)
            for name in ("next_signal", "next_noise", "history")
        )
        written = (
            (moved, signal * instead + spread * noise),
            (carry, history * instead),
        )
        after = []
        for before, fresh in written:
            whole = self._family.unpacked(before[own])
            mixed = torch.where(largest > 0, (1 - largest) * whole + largest * fresh, whole)
            after.append(before.index_copy(0, _long(own, before), self._family.packed(mixed)))
        return after[0], after[1]

    def _estimate(self, levels: Mapping[str, Tensor], latents: Tensor, out: Tensor) -> Tensor:
        """x̂_0, `[rows, channels, ...]`."""
        sample, output = (beside(levels[name], latents) for name in ("sample", "output"))
        return self._family.unpacked(sample * latents + output * out)

    def _levels(
        self, tables: Mapping[int, Estimates], rows: Sequence[int], device: torch.device
    ) -> dict[str, Tensor]:
        """The tables at the rows' places, each `[rows]`."""
        own = [(tables[row], self._done[row]) for row in rows]
        names = ("sample", "output", "next_signal", "next_noise", "history")
        return {
            name: torch.stack([getattr(told, name)[at] for told, at in own]).to(device)
            for name in names
        }

    def _told(self, path: Trajectory) -> Estimates:
        if path.offset not in self._tables:
            self._tables[path.offset] = estimates_of(self._family.scheduler, path.schedule)
        return self._tables[path.offset]

    def _looks(self, name: str, tables: Estimates) -> frozenset[int]:
        eraser, column = self._index[name]
        looks = self._erasers[eraser].inspections[column]
        return looks.among(tables.level.tolist(), tables.whole.tolist())


def _long(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=like.device)
