"""Suite `images`: is the concept kept out of the images, and only the concept.

Every method runs on the same prompts and seeds as the bare model. Where nothing acts on a prompt,
its image is the bare one by construction, and the bare model's result is reused. Some of these
images are generated all the same, to verify that.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from guard.data.prompts import ImagePrompt
from guard.evaluation.images.cells import CellResult, CellResults, JudgedImage, cell_digest
from guard.evaluation.images.comparison import identical, mean_difference, outside_psnr
from guard.evaluation.images.interface import Advance, GeneratedImage, ImageGenerator, PromptEffect
from guard.evaluation.images.judge import Judges
from guard.evaluation.images.row_tensors import RowTensors
from guard.evaluation.images.suite import BARE, PART, Cell, ImageSuite, cells
from guard.reporting.pngs import mask_png, png
from guard.reporting.progress import Stages

THUMBNAILS = 2
"""Images of a cell that are kept for the report."""
RECENT = 512
"""Images that are kept in memory, for methods with the same guards."""
VERIFY = "verify"
"""The kind of the cells that verify reused results."""


@dataclass(frozen=True, slots=True)
class EvaluatedCell:
    """A cell and its results by method, including the bare model if it ran."""

    cell: Cell
    results: Mapping[str, CellResult]

    def judgements(self, method: str) -> list[tuple[ImagePrompt, JudgedImage]]:
        """The prompts and judged images of one method; empty if it did not run."""
        result = self.results.get(method)
        return list(zip(self.cell.rows, result.images, strict=True)) if result else []


class ImageEvaluation:
    """Runs a suite and keeps every finished cell.

    With `distances`, images that should be the bare ones and are not are generated and compared
    with them, and so are the parts of images outside of masks.
    """

    def __init__(
        self,
        suite: ImageSuite,
        generator: ImageGenerator,
        judges: Judges,
        results: CellResults,
        *,
        distances: bool = False,
    ) -> None:
        self._suite, self._generator = suite, generator
        self._judges, self._results = judges, results
        self._distances = distances
        self._recent: OrderedDict[Hashable, GeneratedImage] = OrderedDict()

    def run(self, rows: Iterable[ImagePrompt], progress: Stages) -> list[EvaluatedCell]:
        """Every cell; finished cells are taken from the file of results."""
        evaluated: list[EvaluatedCell] = []
        for kind, group in groupby(cells(rows, self._suite), lambda cell: cell.kind):
            cells_of_kind = list(group)
            total = sum(len(cell.rows) * len(self._methods(cell)) for cell in cells_of_kind)
            advance = progress(kind, total)
            evaluated += [self._evaluate(cell, advance) for cell in cells_of_kind]
        return evaluated + self._verify(evaluated, progress)

    def _methods(self, cell: Cell) -> tuple[str, ...]:
        methods = self._suite.methods_for(cell.rows[0])
        return methods if cell.silent else (BARE, *methods)

    def _evaluate(self, cell: Cell, advance: Advance) -> EvaluatedCell:
        results: dict[str, CellResult] = {}
        for method in self._methods(cell):
            results[method] = self._result(cell, method, results.get(BARE), advance)
        return EvaluatedCell(cell, results)

    def _result(
        self, cell: Cell, method: str, bare: CellResult | None, advance: Advance
    ) -> CellResult:
        policies = [self._suite.policy(method, row.concept) for row in cell.rows]
        digest = self._digest(cell, policies)
        if (finished := self._results.get(method, digest)) is not None:
            advance(len(cell.rows))
            return finished
        effects = (
            [PromptEffect(same=True) for _ in cell.rows]
            if method == BARE
            else self._generator.inspect(
                [row.prompt for row in cell.rows],
                policies,
                [RowTensors.of(row) for row in cell.rows],
            )
        )
        # all bare images are generated, since other methods reuse them
        due = {
            i: effect
            for i, effect in enumerate(effects)
            if method == BARE
            or effect.late
            or not (effect.same or effect.blocked or (cell.silent and not self._distances))
        }
        advance(len(cell.rows) - len(due))
        started = time.perf_counter()
        outcomes, count = self._generate(cell, due, policies, advance)
        seconds = time.perf_counter() - started
        judged = self._judge(cell, effects, outcomes)
        if bare is not None:
            for i, effect in enumerate(effects):
                if i not in outcomes and effect.same:
                    views = {
                        name: getattr(bare.images[i], name) for name in ("view", "second_view")
                    }
                    judged[i] = judged[i].model_copy(update=views)
        return self._keep(cell, method, digest, count, seconds, judged)

    def _judge(
        self,
        cell: Cell,
        effects: Sequence[PromptEffect],
        outcomes: Mapping[int, GeneratedImage],
    ) -> list[JudgedImage]:
        """One judged image per row of a cell, from the `outcomes` of rows that were generated."""
        judged = [
            JudgedImage.of(outcomes[i].effect if i in outcomes else effect)
            for i, effect in enumerate(effects)
        ]
        images = {i: made.image for i, made in outcomes.items() if made.image is not None}
        distances = self._bare_distances(cell, outcomes)
        # where nothing but what has written acted, the rest should be the bare image
        outside = self._outside_masks(cell, {i: o for i, o in outcomes.items() if effects[i].same})
        for i, (view, second_view) in zip(
            images, self._judges.views(list(images.values())), strict=True
        ):
            facts: dict[str, object] = {"view": view, "second_view": second_view}
            facts |= {"distance": distances.get(i), "outside": outside.get(i)}
            if i < THUMBNAILS:
                mask = outcomes[i].mask
                facts |= {"thumbnail": png(images[i])}
                facts |= {"mask": None if mask is None else mask_png(mask)}
            judged[i] = judged[i].model_copy(update=facts)
        return judged

    def _generate(
        self,
        cell: Cell,
        effects: Mapping[int, PromptEffect],
        policies: Sequence[str | None],
        advance: Advance,
    ) -> tuple[dict[int, GeneratedImage], int]:
        """The outcomes of some rows of a cell, and how many of them were generated now.

        If no guard acts on a prompt, its image depends only on guards that inspect images. A recent
        image of another method with the same such guards is reused.
        """
        keys: dict[int, Hashable] = {
            i: (cell.rows[i].prompt, RowTensors.of(cell.rows[i]), cell.seeds[i], effect.late)
            for i, effect in effects.items()
            if effect.same
        }
        outcomes = {
            i: replace(recent, effect=_combined(effects[i], recent.effect))
            for i, key in keys.items()
            if (recent := self._recent.get(key)) is not None
        }
        new = [i for i in effects if i not in outcomes]
        advance(len(outcomes))
        generated = self._generator.generate(
            [cell.rows[i].prompt for i in new],
            [cell.seeds[i] for i in new],
            [policies[i] for i in new],
            advance,
            [RowTensors.of(cell.rows[i]) for i in new],
        )
        for i, outcome in zip(new, generated, strict=True):
            outcomes[i] = outcome
            if i in keys:
                self._recent[keys[i]] = outcome
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        return outcomes, len(new)

    def _bare_distances(
        self, cell: Cell, outcomes: Mapping[int, GeneratedImage]
    ) -> dict[int, float]:
        """The distance to the bare image, of images that should be that image and are not."""
        if not (self._distances and cell.silent):
            return {}
        changed = {
            i: outcome.image
            for i, outcome in outcomes.items()
            if outcome.image is not None and not outcome.effect.same
        }
        bare = self._bare_images(cell, changed)
        return {i: mean_difference(changed[i], image) for i, image in bare.items()}

    def _outside_masks(
        self, cell: Cell, outcomes: Mapping[int, GeneratedImage]
    ) -> dict[int, float]:
        """The PSNR to the bare image outside of masks."""
        if not self._distances or cell.silent:
            return {}
        masked = {
            i: (outcome.image, outcome.mask)
            for i, outcome in outcomes.items()
            if outcome.image is not None and outcome.mask is not None
        }
        bare = self._bare_images(cell, masked)
        return {
            i: outside_psnr(image, mask, bare[i])
            for i, (image, mask) in masked.items()
            if i in bare
        }

    def _bare_images(self, cell: Cell, rows: Iterable[int]) -> dict[int, NDArray[np.uint8]]:
        """The bare images of some rows of a cell."""
        effects = {i: PromptEffect(same=True) for i in rows}
        outcomes, _ = self._generate(cell, effects, [None] * len(cell.rows), lambda _count: None)
        return {i: o.image for i, o in outcomes.items() if o.image is not None}

    def _verify(self, evaluated: Sequence[EvaluatedCell], progress: Stages) -> list[EvaluatedCell]:
        """Generate some of the images whose result was reused, guarded and bare, and compare."""
        wanted = self._suite.verify
        verified = []
        for method in self._suite.methods if wanted else ():
            reused = [
                (row, seed)
                for item in evaluated
                for (row, image), seed in zip(
                    item.judgements(method), item.cell.seeds, strict=False
                )
                if item.cell.silent and image.same
            ]
            # evenly over the concepts, which are sorted
            chosen = reused[:: max(len(reused) // wanted, 1)][:wanted]
            for start in range(0, len(chosen), PART):
                rows, seeds = zip(*chosen[start : start + PART], strict=True)
                cell = Cell("", VERIFY, None, start // PART, rows, seeds)
                advance = progress(f"{VERIFY} {method}", 2 * len(rows))
                result = self._compare(cell, method, advance)
                verified.append(EvaluatedCell(cell, {method: result}))
        return verified

    def _compare(self, cell: Cell, method: str, advance: Advance) -> CellResult:
        policies = [self._suite.policy(method, row.concept) for row in cell.rows]
        digest = self._digest(cell, policies)
        if (finished := self._results.get(method, digest)) is not None:
            advance(2 * len(cell.rows))
            return finished
        prompts = [row.prompt for row in cell.rows]
        started = time.perf_counter()
        guarded = self._generator.generate(prompts, cell.seeds, policies, advance)
        bare = self._generator.generate(prompts, cell.seeds, [None] * len(prompts), advance)
        seconds = time.perf_counter() - started
        judged = [
            JudgedImage(same=identical(image.image, bare_image.image))
            for image, bare_image in zip(guarded, bare, strict=True)
        ]
        return self._keep(cell, method, digest, 2 * len(prompts), seconds, judged)

    def _digest(self, cell: Cell, policies: Sequence[str | None]) -> str:
        identities = [self._generator.identity(policy) for policy in dict.fromkeys(policies)]
        measured = ["distances"] if self._distances and cell.silent else []
        return cell_digest(cell, *identities, *self._judges.identity, *measured)

    def _keep(
        self,
        cell: Cell,
        method: str,
        digest: str,
        generated: int,
        seconds: float,
        images: Sequence[JudgedImage],
    ) -> CellResult:
        result = CellResult(
            method=method,
            concept=cell.concept,
            kind=cell.kind,
            effort=cell.effort,
            part=cell.part,
            digest=digest,
            generated=generated,
            seconds=round(seconds, 3),
            images=tuple(images),
        )
        self._results.add(result)
        return result


def _combined(on_prompt: PromptEffect, on_image: PromptEffect) -> PromptEffect:
    """The effect of a policy on a prompt, and of guards it shares with others on the image."""
    largest = max(
        on_prompt, on_image, key=lambda effect: -np.inf if effect.score is None else effect.score
    )
    return replace(
        on_image,
        fired=on_prompt.fired or on_image.fired,
        score=largest.score,
        after=largest.after,
        steps=largest.steps,
    )
