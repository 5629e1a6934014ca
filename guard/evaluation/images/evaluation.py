"""Suite `images`: is the concept kept out of the images, and only the concept.

Every method plays the same prompts with the same seeds as the bare model. Where nothing acted on a
prompt its image is the bare one by construction, and is taken over instead of being drawn; some
of them are drawn all the same, to show that this holds.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from guard.data.prompts import ImagePrompt
from guard.evaluation.images.cells import CellResult, CellResults, JudgedImage, cell_digest
from guard.evaluation.images.judge import Judge
from guard.evaluation.images.row_tensors import RowTensors
from guard.evaluation.images.suite import BARE, PART, Cell, ImageSuite, cells
from guard.reporting.pngs import png
from guard.reporting.progress import Stages

THUMBNAILS = 2
"""Images of a cell that are kept for the report."""
LATELY = 512
"""Images that are remembered, for methods that do the same."""
VERIFY = "verify"
"""The kind of the cells that check what was taken over."""

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class PromptEffect:
    """What a policy makes of a prompt before anything is drawn.

    `same`: nothing acts, the image will be the bare one, unless a guard that looks at the image
    itself finds the concept there: `late` says what those guards are and do, empty where there are
    none. `score`, `after` and `steps` are of the guard with the largest score.
    """

    same: bool
    late: str = ""
    fired: bool = False
    blocked: bool = False
    steps: int = 0
    score: float | None = None
    after: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GeneratedImage:
    """What came of drawing a prompt: how it looks by now, and the image where it has one."""

    look: PromptEffect
    image: NDArray[np.uint8] | None
    mask: NDArray[np.float32] | None = None
    """Where guards have written, `[height, width]` in 0..1 on the latents' grid."""


class ImageGenerator(Protocol):
    """Draws for the evaluation. A policy of None is the bare model."""

    def identity(self, policy: str | None) -> str:
        """Changes whenever the images under a policy may change."""

    def look(
        self,
        prompts: Sequence[str],
        policies: Sequence[str | None],
        brought: Sequence[RowTensors] = (),
    ) -> list[PromptEffect]:
        """What each prompt's policy makes of it, and of what the prompt brings, where any does."""

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        policies: Sequence[str | None],
        advance: Advance,
        brought: Sequence[RowTensors] = (),
    ) -> list[GeneratedImage]:
        """What comes of each prompt, none of which is blocked by what it looks like; `advance` is
        told how many more are done."""


@dataclass(frozen=True, slots=True)
class Judges:
    """The judge whose view counts, and the one it is compared with."""

    judge: Judge
    second: Judge | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        return tuple(each.digest for each in (self.judge, self.second) if each)


@dataclass(frozen=True, slots=True)
class PlayedCell:
    """A cell and its results by method, the bare model's among them where it was drawn."""

    cell: Cell
    results: Mapping[str, CellResult]

    def pairs(self, method: str) -> list[tuple[ImagePrompt, JudgedImage]]:
        """Prompts and shots of one method; none where it did not play."""
        result = self.results.get(method)
        return list(zip(self.cell.rows, result.shots, strict=True)) if result else []


class ImageEvaluation:
    """Plays a suite and keeps every finished cell.

    `distances`: what must stay silent and does not is drawn, and held against the bare image, and
    so is what lies outside of masks.
    """

    def __init__(
        self,
        suite: ImageSuite,
        drawer: ImageGenerator,
        judges: Judges,
        results: CellResults,
        *,
        distances: bool = False,
    ) -> None:
        self._suite, self._drawer = suite, drawer
        self._judges, self._results = judges, results
        self._distances = distances
        self._lately: OrderedDict[Hashable, GeneratedImage] = OrderedDict()

    def run(self, rows: Iterable[ImagePrompt], progress: Stages) -> list[PlayedCell]:
        """Everything, the cells that are done already taken from the file of results."""
        every = cells(rows, self._suite)
        played: list[PlayedCell] = []
        for kind, group in groupby(every, lambda cell: cell.kind):
            mine = list(group)
            total = sum(len(cell.rows) * len(self._methods(cell)) for cell in mine)
            advance = progress(kind, total)
            played += [self._play(cell, advance) for cell in mine]
        return played + self._verify(played, progress)

    def _methods(self, cell: Cell) -> tuple[str, ...]:
        methods = self._suite.methods_for(cell.rows[0])
        return methods if cell.silent else (BARE, *methods)

    def _play(self, cell: Cell, advance: Advance) -> PlayedCell:
        results: dict[str, CellResult] = {}
        for method in self._methods(cell):
            results[method] = self._result(cell, method, results.get(BARE), advance)
        return PlayedCell(cell, results)

    def _result(
        self, cell: Cell, method: str, bare: CellResult | None, advance: Advance
    ) -> CellResult:
        policies = [self._suite.policy(method, row.concept) for row in cell.rows]
        digest = self._digest(cell, policies)
        if (done := self._results.get(method, digest)) is not None:
            advance(len(cell.rows))
            return done
        looks = (
            [PromptEffect(same=True) for _ in cell.rows]
            if method == BARE
            else self._drawer.look(
                [row.prompt for row in cell.rows],
                policies,
                [RowTensors.of(row) for row in cell.rows],
            )
        )
        # the bare images are what others are the same as: they are all drawn
        drawn = [
            i
            for i, look in enumerate(looks)
            if method == BARE
            or look.late
            or not (look.same or look.blocked or (cell.silent and not self._distances))
        ]
        advance(len(cell.rows) - len(drawn))
        began = time.perf_counter()
        came, fresh = self._drawn(cell, {i: looks[i] for i in drawn}, policies, advance)
        seconds = time.perf_counter() - began
        images = {i: one.image for i, one in came.items() if one.image is not None}
        judged = dict(zip(images, self._judged(list(images.values())), strict=True))
        far = self._far(cell, images, {i: came[i].look for i in came})
        outside = self._outside(cell, {i: one for i, one in came.items() if looks[i].same})
        shots = []
        for i, first in enumerate(looks):
            look = came[i].look if i in came else first
            shot = _shot(look)
            if i in judged:
                shot = shot.model_copy(
                    update=judged[i] | {"distance": far.get(i), "outside": outside.get(i)}
                )
                if i < THUMBNAILS:
                    shown = {"thumbnail": png(images[i]), "mask": _mask(came[i].mask)}
                    shot = shot.model_copy(update=shown)
            elif i not in came and look.same and bare is not None:
                taken = bare.shots[i]
                shot = shot.model_copy(update={"seen": taken.seen, "second": taken.second})
            shots.append(shot)
        return self._keep(cell, method, digest, fresh, seconds, shots)

    def _drawn(
        self,
        cell: Cell,
        looks: Mapping[int, PromptEffect],
        policies: Sequence[str | None],
        advance: Advance,
    ) -> tuple[dict[int, GeneratedImage], int]:
        """What comes of some rows of a cell, and how many of them were drawn.

        Where no guard acts on a prompt, its image depends on the guards that look at the image
        alone: what another method with the same ones has drawn lately is taken over.
        """
        keys: dict[int, Hashable] = {
            i: (cell.rows[i].prompt, RowTensors.of(cell.rows[i]), cell.seeds[i], look.late)
            for i, look in looks.items()
            if look.same
        }
        came = {i: self._lately[key] for i, key in keys.items() if key in self._lately}
        came = {i: replace(one, look=_together(looks[i], one.look)) for i, one in came.items()}
        fresh = [i for i in looks if i not in came]
        advance(len(came))
        made = self._drawer.draw(
            [cell.rows[i].prompt for i in fresh],
            [cell.seeds[i] for i in fresh],
            [policies[i] for i in fresh],
            advance,
            [RowTensors.of(cell.rows[i]) for i in fresh],
        )
        for i, one in zip(fresh, made, strict=True):
            came[i] = one
            if i in keys:
                self._lately[keys[i]] = one
        while len(self._lately) > LATELY:
            self._lately.popitem(last=False)
        return came, len(fresh)

    def _judged(self, drawn: Sequence[NDArray[np.uint8]]) -> list[dict[str, object]]:
        images = np.stack(drawn) if drawn else np.zeros((0, 1, 1, 3), np.uint8)
        seen = self._judges.judge.look(images)
        second = self._judges.second
        others = second.look(images) if second else [None] * len(seen)
        return [{"seen": a, "second": b} for a, b in zip(seen, others, strict=True)]

    def _far(
        self,
        cell: Cell,
        images: Mapping[int, NDArray[np.uint8]],
        looks: Mapping[int, PromptEffect],
    ) -> dict[int, float]:
        """How far images are from the bare ones, where they are to be those and are not."""
        if not (self._distances and cell.silent):
            return {}
        changed = [i for i in images if not looks[i].same]
        return {
            i: float(np.abs(images[i].astype(np.float64) - bare).mean())
            for i, bare in self._bare(cell, changed).items()
        }

    def _outside(self, cell: Cell, came: Mapping[int, GeneratedImage]) -> dict[int, float]:
        """The PSNR to the bare image outside of masks."""
        if not self._distances or cell.silent:
            return {}
        there = {
            i: (one.image, one.mask)
            for i, one in came.items()
            if one.image is not None and one.mask is not None
        }
        bare = self._bare(cell, there)
        return {i: outside_psnr(*one, bare[i]) for i, one in there.items() if i in bare}

    def _bare(self, cell: Cell, wanted: Iterable[int]) -> dict[int, NDArray[np.uint8]]:
        """The bare images of some rows of a cell."""
        nothing = {i: PromptEffect(same=True) for i in wanted}
        came, _ = self._drawn(cell, nothing, [None] * len(cell.rows), lambda _count: None)
        return {i: one.image for i, one in came.items() if one.image is not None}

    def _verify(self, played: Sequence[PlayedCell], progress: Stages) -> list[PlayedCell]:
        """Draw some of the images that were taken over, guarded and bare, and compare bytes."""
        wanted = self._suite.verify
        found = []
        for method in self._suite.methods if wanted else ():
            same = [
                (row, seed)
                for each in played
                for (row, shot), seed in zip(each.pairs(method), each.cell.seeds, strict=False)
                if each.cell.silent and shot.same
            ]
            # spread over the concepts, which stand one behind the other
            chosen = same[:: max(len(same) // wanted, 1)][:wanted]
            for at in range(0, len(chosen), PART):
                rows, seeds = zip(*chosen[at : at + PART], strict=True)
                cell = Cell("", VERIFY, None, at // PART, rows, seeds)
                advance = progress(f"{VERIFY} {method}", 2 * len(rows))
                found.append(PlayedCell(cell, {method: self._compared(cell, method, advance)}))
        return found

    def _compared(self, cell: Cell, method: str, advance: Advance) -> CellResult:
        policies = [self._suite.policy(method, row.concept) for row in cell.rows]
        digest = self._digest(cell, policies)
        if (done := self._results.get(method, digest)) is not None:
            advance(2 * len(cell.rows))
            return done
        prompts = [row.prompt for row in cell.rows]
        began = time.perf_counter()
        guarded = self._drawer.draw(prompts, cell.seeds, policies, advance)
        bare = self._drawer.draw(prompts, cell.seeds, [None] * len(prompts), advance)
        seconds = time.perf_counter() - began
        shots = [
            JudgedImage(same=_equal(one.image, other.image))
            for one, other in zip(guarded, bare, strict=True)
        ]
        return self._keep(cell, method, digest, 2 * len(prompts), seconds, shots)

    def _digest(self, cell: Cell, policies: Sequence[str | None]) -> str:
        identities = [self._drawer.identity(policy) for policy in dict.fromkeys(policies)]
        measured = ["distances"] if self._distances and cell.silent else []
        return cell_digest(cell, *identities, *self._judges.identity, *measured)

    def _keep(
        self,
        cell: Cell,
        method: str,
        digest: str,
        drawn: int,
        seconds: float,
        shots: Sequence[JudgedImage],
    ) -> CellResult:
        result = CellResult(
            method=method,
            concept=cell.concept,
            kind=cell.kind,
            effort=cell.effort,
            part=cell.part,
            digest=digest,
            drawn=drawn,
            seconds=round(seconds, 3),
            shots=tuple(shots),
        )
        self._results.add(result)
        return result


def _together(first: PromptEffect, late: PromptEffect) -> PromptEffect:
    """How a prompt looks to its own policy, and its image to guards that others have too."""
    most = max(first, late, key=lambda look: -np.inf if look.score is None else look.score)
    return replace(
        late,
        fired=first.fired or late.fired,
        score=most.score,
        after=most.after,
        steps=most.steps,
    )


def _shot(look: PromptEffect) -> JudgedImage:
    told = asdict(look)
    del told["late"]
    return JudgedImage(**told)


def outside_psnr(
    image: NDArray[np.uint8], mask: NDArray[np.float32], bare: NDArray[np.uint8]
) -> float:
    """The PSNR of `image [height, width, 3]` to `bare` where the mask, on the latents' grid, is
    0: in dB, at most 99, and that too where it is nowhere 0."""
    rows = np.arange(image.shape[0]) * mask.shape[0] // image.shape[0]
    columns = np.arange(image.shape[1]) * mask.shape[1] // image.shape[1]
    free = mask[np.ix_(rows, columns)] == 0
    if not free.any():
        return 99.0
    error = float(((image[free].astype(np.float64) - bare[free]) ** 2).mean())
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


def _mask(mask: NDArray[np.float32] | None) -> str | None:
    """As a grey PNG."""
    if mask is None:
        return None
    return png(np.repeat((mask * 255).round().astype(np.uint8)[..., None], 3, axis=2))


def _equal(one: NDArray[np.uint8] | None, other: NDArray[np.uint8] | None) -> bool:
    return one is not None and other is not None and np.array_equal(one, other)
