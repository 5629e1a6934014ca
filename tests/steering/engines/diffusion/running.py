"""Running an engine to the end: its rows, with their latents, images and readings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.hidden.rows import RowGuard
from steering.images.embedding import ImageReading
from steering.images.stacks import ImageStacks
from tests.steering.engines.diffusion.tiny import shared

# numbers of steps, guidance and prompts of all kinds; the second row has no unconditional one
STARTS = (
    ImageStart("a knife on the table", seed=1, steps=4, guidance=3.0),
    ImageStart("a cat", seed=2, steps=6, guidance=1.0),
    ImageStart("red dog", "a banana", seed=3, steps=3, guidance=5.0),
    ImageStart("a banana", seed=4, steps=5, guidance=2.0),
    ImageStart("a cat and a dog", seed=5, steps=5, guidance=2.0),
)
CLOSE = 1e-4
"""Of the largest value in a row's latents: the tolerance in the engine's documentation."""

Generated = dict[int, tuple[Tensor, NDArray[np.uint8]]]
"""Latents and image by the index of the start."""
Readings = dict[int, Mapping[str, ImageReading]]


def stacked(*stacks: Any, output: Sequence[Any] = (), latents: Sequence[Any] = ()) -> ImageStacks:
    """`stacks` read prompts; some of them act at other seams too."""
    return ImageStacks.by_seam(
        stacks,
        guidance=[stack for stack in stacks if hasattr(stack, "term")],
        overlaying=[stack for stack in stacks if hasattr(stack, "overlays")],
        latents=latents,
        output=output,
    )


def new_engine(
    family: Family,
    *stacks: Any,
    output: Sequence[Any] = (),
    latents: Sequence[Any] = (),
    **options: Any,
) -> DiffusionEngine:
    options.setdefault("capacity", 5)
    return DiffusionEngine(family, stacked(*stacks, output=output, latents=latents), **options)


def run_with_readings(
    engine: DiffusionEngine,
    starts: Sequence[ImageStart],
    *,
    joining: int = 9,
    before: Callable[[int, list[int]], Sequence[int]] | None = None,
) -> tuple[Generated, Readings]:
    """Generate `starts`, of which `joining` join before each step; and the readings of each.

    `before(step, live)` may name indices of live rows to be dropped before that step.
    """
    waiting, live, step = list(range(len(starts))), list[int](), 0
    generated: Generated = {}
    readings: Readings = {}
    while waiting or live:
        fresh, waiting = waiting[:joining], waiting[joining:]
        engine.start([starts[index] for index in fresh])
        live += fresh
        lost = before(step, live) if before else ()
        leave(engine, live, [live.index(index) for index in lost])
        complete = engine.step()
        for row in complete:
            generated[live[row]] = result(engine, row)
            readings[live[row]] = engine.readings(row)
        leave(engine, live, complete)
        step += 1
    return generated, readings


def run(
    engine: DiffusionEngine,
    starts: Sequence[ImageStart],
    *,
    joining: int = 9,
    before: Callable[[int, list[int]], Sequence[int]] | None = None,
) -> Generated:
    """The same without the readings."""
    return run_with_readings(engine, starts, joining=joining, before=before)[0]


def guarded(start: ImageStart, *guards: RowGuard) -> ImageStart:
    return replace(start, guards=guards)


def result(engine: DiffusionEngine, row: int) -> tuple[Tensor, NDArray[np.uint8]]:
    return engine._slots.latents[row].clone(), engine.images([row])[0]


def finish(engine: DiffusionEngine) -> list[int]:
    """Step until rows are complete; these rows."""
    while not (complete := engine.step()):
        pass
    return complete


def leave(engine: DiffusionEngine, live: list[int], rows: Sequence[int]) -> None:
    for source, target in engine.drop(rows):
        live[target] = live[source]
    del live[engine.rows :]


def alone(engine: DiffusionEngine, start: ImageStart) -> tuple[Tensor, NDArray[np.uint8]]:
    return run(engine, [start])[0]


@cache
def bare(name: str, index: int) -> tuple[Tensor, NDArray[np.uint8]]:
    """The result of `STARTS[index]` alone and unguarded."""
    return alone(new_engine(shared(name)), STARTS[index])


def assert_bare(generated: Generated, name: str = "emoji") -> None:
    """Each row has the bits of its start alone and unguarded."""
    for index, (latents, image) in generated.items():
        assert torch.equal(latents, bare(name, index)[0]), index
        assert np.array_equal(image, bare(name, index)[1]), index
