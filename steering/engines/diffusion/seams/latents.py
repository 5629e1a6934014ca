"""The latent seam: guards inspect and rewrite the rows of a running batch between two steps."""

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

    `latents` are its input, `unconditional` and `guided` the predictions, `stepped` and `carry` the
    sample and carry of the sampler's step from these: all `[rows, ...]`.
    """

    latents: Tensor
    unconditional: Tensor
    guided: Tensor
    stepped: Tensor
    carry: Tensor


@dataclass(eq=False)
class _Pair:
    """A guard on a row: column `column` of the stack number `stack`, which inspects the row at the
    evaluations `inspections`."""

    row: int
    stack: int
    column: int
    guard: RowGuard
    tables: Estimates
    seed: int
    inspections: frozenset[int]
    reading: ImageReading | None = None
    mask: Tensor | None = None
    """The union of its masks so far, `[(frames,) height, width]`."""

    def inspected(self, score: float, position: int) -> bool:
        """Record the score of an inspection; returns whether the guard fires there."""
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

    def wrote(self, mask: Tensor, peak: float) -> None:
        """Record that it has written over `mask`; a NaN peak means that no position was found."""
        assert self.reading is not None
        mask = mask.detach()
        self.mask = mask if self.mask is None else torch.maximum(self.mask, mask)
        before, located = self.reading.peak, math.isfinite(peak)
        self.reading = replace(
            self.reading,
            valid=self.reading.valid and located,
            steps=self.reading.steps + 1,
            area=float(self.mask.mean()),
            peak=max(peak, peak if before is None else before) if located else before,
        )

    def settle(self, score: float) -> None:
        """Record its score of the finished image."""
        assert self.reading is not None
        finite = math.isfinite(score)
        self.reading = replace(
            self.reading,
            after=score if finite else None,
            valid=self.reading.valid and finite,
            resolved=finite and score <= self.guard.threshold,
        )


class LatentSeam:
    """The latent guards of one model and their pairs with the rows of its running batch.

    Rows are added, moved and removed as in `steering.hidden.table.Table`. One step of an engine is
    `inspect`, the forwards with `attention` among their seams, then `write`. With `one_by_one`,
    guards inspect each row separately, so that the result on a row does not depend on the others.
    Raises ValueError for a guard that reads a layer which the model does not have or that takes
    another number of channels, and for two guards of one name. Not thread-safe.
    """

    def __init__(
        self, stacks: Sequence[LatentGuards], family: Family, *, one_by_one: bool = False
    ) -> None:
        self._stacks, self._family, self._one_by_one = tuple(stacks), family, one_by_one
        if misfits := [s.channels for s in stacks if s.channels != family.channels]:
            raise ValueError(
                f"a latent guard takes latents of {misfits[0]} channels, the model's have "
                f"{family.channels}"
            )
        self._tables: dict[int, Estimates] = {}
        """By the offset of a trajectory in the sampler's tables."""
        self._index = {
            name: (number, column)
            for number, stack in enumerate(stacks)
            for column, name in enumerate(stack.names)
        }
        if len(self._index) != sum(len(stack.names) for stack in stacks):
            raise ValueError("two latent guards of a model have the same name: rename one of them")
        probes = [probe for stack in stacks for column in stack.probes for probe in column]
        self.attention = AttentionSeam(family, probes)
        numbers = iter(range(len(probes)))
        self._probes = [[[next(numbers) for _ in column] for column in s.probes] for s in stacks]
        """Stack → column → the numbers of its probes."""
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
        self.attention.remove()

    def check(self, guards: Sequence[RowGuard], trajectory: Trajectory) -> None:
        """Raise ValueError for a guard that can inspect no evaluation of the trajectory."""
        for guard in guards:
            if guard.name in self and not self._inspections(
                guard.name, self._estimates(trajectory)
            ):
                raise ValueError(
                    f"{guard.name} can inspect none of the {trajectory.generating} evaluations: "
                    "ask for more steps"
                )

    def add(self, row: int, guards: Sequence[RowGuard], trajectory: Trajectory, seed: int) -> None:
        """Put these guards on a fresh row. Raises KeyError for an unknown one."""
        self.remove(row)
        for guard in guards:
            stack, column = self._index[guard.name]
            tables = self._estimates(trajectory)
            inspections = self._inspections(guard.name, tables)
            self._pairs.append(_Pair(row, stack, column, guard, tables, seed, inspections))

    def move(self, source: int, target: int) -> None:
        """Move the request on row `source` to row `target`."""
        self.remove(target)
        for pair in self._pairs:
            if pair.row == source:
                pair.row = target

    def remove(self, row: int) -> None:
        """Forget the request on `row`."""
        self._pairs = [pair for pair in self._pairs if pair.row != row]

    def readings(self, row: int) -> dict[str, ImageReading]:
        """The readings of the guards of `row` so far."""
        pairs = (pair for pair in self._pairs if pair.row == row)
        return {pair.guard.name: pair.reading for pair in pairs if pair.reading is not None}

    def masks(self, row: int) -> dict[str, Tensor]:
        """The masks of the writes of the guards of `row`, `[(frames,) height, width]` in 0..1."""
        pairs = (pair for pair in self._pairs if pair.row == row)
        return {pair.guard.name: pair.mask for pair in pairs if pair.mask is not None}

    # -- one step ---------------------------------------------------------------------------------

    def inspect(self, done: Sequence[int], plain: Sequence[int]) -> None:
        """Before the forwards of a step: choose the pairs that inspect its result.

        `done[row]` counts the evaluations of a row that generate, so far. `plain[row]` is the row
        of the network whose attention is read: the one without the prompt if there is one.
        """
        self._done = done
        self._due = [pair for pair in self._pairs if done[pair.row] in pair.inspections]
        requests = [(plain[p.row], probe) for p in self._due for probe in self._probes_of(p)]
        self.attention.request([row for row, _ in requests], [probe for _, probe in requests])

    def write(self, step: DenoisingStep) -> tuple[Tensor, Tensor]:
        """After the forwards of a step: its samples and carries as the guards rewrite them,
        `[rows, ...]`.

        Rows in which no guard fires keep their bits.
        """
        latents, carry = step.stepped, step.carry
        if not self._due:
            return latents, carry
        sizes = [len(self._probes_of(pair)) for pair in self._due]
        attended = torch.split(self.attention.scores(), sizes)
        groups: dict[tuple[int, int], list[int]] = {}
        for i, pair in enumerate(self._due):
            groups.setdefault((pair.stack, pair.row if self._one_by_one else 0), []).append(i)
        for (number, _), group in sorted(groups.items()):
            pairs, maps = [self._due[i] for i in group], [attended[i] for i in group]
            latents, carry = self._erase(self._stacks[number], pairs, maps, step, latents, carry)
        return latents, carry

    def _probes_of(self, pair: _Pair) -> Sequence[int]:
        """The probes of a pair: none for a guard that does not act, and needs no position."""
        return self._probes[pair.stack][pair.column] if pair.guard.acts else ()

    def written(self, rows: Sequence[int]) -> list[int]:
        """Those of these rows in which a guard has written."""
        masked = {pair.row for pair in self._pairs if pair.mask is not None}
        return [row for row in rows if row in masked]

    def settle(self, rows: Sequence[int], finished: Tensor) -> None:
        """Score `finished [rows, channels, ...]`, the latents of complete rows, by the guards that
        have written there."""
        written = [p for p in self._pairs if p.row in rows and p.mask is not None]
        for number, stack in enumerate(self._stacks):
            if pairs := [pair for pair in written if pair.stack == number]:
                scores, _ = self._sensed(stack, pairs, finished, rows)
                for pair, score in zip(pairs, scores.tolist(), strict=True):
                    pair.settle(score)

    def _sensed(
        self, stack: LatentGuards, pairs: Sequence[_Pair], estimate: Tensor, rows: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Scores `[pairs]` and votes of pairs on `estimate`, whose rows are those of `rows`."""
        columns = sorted({pair.column for pair in pairs})
        score, votes = stack.sense(estimate, columns)
        row = [rows.index(pair.row) for pair in pairs]
        column = [columns.index(pair.column) for pair in pairs]
        return score[row, column], votes[row, column]

    def _erase(
        self,
        stack: LatentGuards,
        pairs: Sequence[_Pair],
        attended: Sequence[Tensor],
        step: DenoisingStep,
        latents: Tensor,
        carry: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`latents` and `carry` as the guards of one stack rewrite them; records their readings."""
        rows, device = sorted({pair.row for pair in pairs}), latents.device
        levels = self._levels({pair.row: pair.tables for pair in pairs}, rows, device)
        estimate, unconditional = (
            self._estimate(levels, step.latents[rows], output[rows])
            for output in (step.guided, step.unconditional)
        )
        scores, votes = self._sensed(stack, pairs, estimate, rows)
        fires = [
            pair.inspected(score, self._done[pair.row] + 1)
            for pair, score in zip(pairs, scores.tolist(), strict=True)
        ]
        acting = [i for i, pair in enumerate(pairs) if fires[i] and pair.guard.acts]
        if not acting:
            return latents, carry
        at = torch.tensor([rows.index(pairs[i].row) for i in acting], device=device)
        localization = stack.locate(
            LatentEvidence(
                guard=torch.tensor([pairs[i].column for i in acting], device=device),
                estimate=estimate[at],
                unconditional=unconditional[at],
                votes=votes[acting],
                attended=torch.cat([attended[i] for i in acting]),
                owner=torch.tensor(
                    [n for n, i in enumerate(acting) for _ in attended[i]], device=device
                ),
            )
        )
        peaks = localization.peak.tolist()
        for i, mask, peak in zip(acting, localization.mask, peaks, strict=True):
            pairs[i].wrote(mask, peak)
        acting_pairs = [pairs[i] for i in acting]
        return self._rewritten(acting_pairs, localization, at, rows, levels, latents, carry)

    def _rewritten(
        self,
        pairs: Sequence[_Pair],
        localization: Localization,
        at: Tensor,
        rows: Sequence[int],
        levels: Mapping[str, Tensor],
        latents: Tensor,
        carry: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`z ← (1 - M) z + M (signal z̃_0 + noise ε)`, M the largest of a row's masks."""
        strength = torch.tensor([min(1.0, pair.guard.strength) for pair in pairs])
        mask = localization.mask
        mask = beside(strength.to(mask), mask) * mask
        # [touched] rows from here on
        touched, owner = torch.unique(at, return_inverse=True)
        blank = mask.new_zeros(len(touched), *mask.shape[1:])
        total = blank.index_add(0, owner, mask)
        index = owner.view(-1, *[1] * (mask.ndim - 1)).expand_as(mask)
        largest = blank.scatter_reduce(0, index, mask, "amax")[:, None]
        weighted = mask[:, None] * localization.replacement
        summed = weighted.new_zeros(len(touched), *weighted.shape[1:]).index_add(0, owner, weighted)
        replacement = summed / total[:, None].clamp(min=1e-6)
        touched_rows = [rows[i] for i in touched.tolist()]
        seeds = {pair.row: pair.seed for pair in pairs}
        noise = self._family.noise([seeds[row] for row in touched_rows], draw=1)
        noise = self._family.unpacked(noise)
        signal, noise_level, history = (
            beside(levels[name][touched], replacement)
            for name in ("next_signal", "next_noise", "history")
        )
        rewrites = (
            (latents, signal * replacement + noise_level * noise),
            (carry, history * replacement),
        )
        rewritten = []
        for before, fresh in rewrites:
            whole = self._family.unpacked(before[touched_rows])
            mixed = self._family.packed(
                torch.where(largest > 0, (1 - largest) * whole + largest * fresh, whole)
            )
            rewritten.append(before.index_copy(0, _long(touched_rows, before), mixed))
        return rewritten[0], rewritten[1]

    def _estimate(self, levels: Mapping[str, Tensor], latents: Tensor, output: Tensor) -> Tensor:
        """x̂_0, `[rows, channels, ...]`."""
        p, q = (beside(levels[name], latents) for name in ("sample", "output"))
        return self._family.unpacked(p * latents + q * output)

    def _levels(
        self, tables: Mapping[int, Estimates], rows: Sequence[int], device: torch.device
    ) -> dict[str, Tensor]:
        """The tables at the current evaluations of the rows, each `[rows]`."""
        positions = [(tables[row], self._done[row]) for row in rows]
        names = ("sample", "output", "next_signal", "next_noise", "history")
        return {
            name: torch.stack([getattr(table, name)[at] for table, at in positions]).to(device)
            for name in names
        }

    def _estimates(self, trajectory: Trajectory) -> Estimates:
        offset = trajectory.offset
        if offset not in self._tables:
            self._tables[offset] = estimates_of(self._family.scheduler, trajectory.schedule)
        return self._tables[offset]

    def _inspections(self, name: str, tables: Estimates) -> frozenset[int]:
        stack, column = self._index[name]
        schedule = self._stacks[stack].inspections[column]
        return schedule.among(tables.level.tolist(), tables.whole.tolist())


def _long(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=like.device)
