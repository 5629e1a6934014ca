"""Images on their way: the estimates that a guard of latents sees, what places attend to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guard.models.images import ImageModel
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.hidden.rows import RowGuard
from steering.images.latent import AttentionProbe, InspectionSchedule, LatentEvidence, Localization
from steering.images.stacks import ImageStacks
from steering.methods.irece import standing_out

AT_ONCE = 16
"""Images."""
_NAME = "watch"


@dataclass(frozen=True)
class RecordedTrajectory:
    """`estimates [images, looks, channels, (frames,) height, width]`, the last of which is the
    finished image, and the mean over the looks of each read's map, as deviations:
    `maps [images, reads, (frames,) height, width]`. On the CPU."""

    estimates: Tensor
    maps: Tensor


class _Recorder:
    """An eraser that fires at every look, keeps what it sees, and leaves all as it is."""

    def __init__(
        self, channels: int, looks: InspectionSchedule, reads: Sequence[AttentionProbe]
    ) -> None:
        self.names: Sequence[str] = (_NAME,)
        self.channels = channels
        self.inspections: Sequence[InspectionSchedule] = (looks,)
        self.probes: Sequence[Sequence[AttentionProbe]] = (tuple(reads),)
        self.seen: list[LatentEvidence] = []

    def sense(self, estimate: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = len(estimate)
        return torch.ones(rows, len(columns)), torch.zeros(rows, len(columns), 1, 1)

    def locate(self, seen: LatentEvidence) -> Localization:
        self.seen.append(seen)
        nothing = torch.zeros_like(seen.estimate[:, 0])
        return Localization(nothing, nothing.flatten(1)[:, 0], torch.zeros_like(seen.estimate))


@torch.no_grad()
def watch(
    painter: ImageModel,
    prompts: Sequence[str],
    looks: InspectionSchedule,
    reads: Sequence[AttentionProbe],
    *,
    steps: int,
    guidance: float,
    seed: int,
    tick: Callable[[int], None] = lambda _rows: None,
) -> RecordedTrajectory:
    """Draw an image of each prompt, as `ImageModel.draw` does, and keep what is seen at
    `looks`."""
    recorder = _Recorder(painter.family.channels, looks, reads)
    engine = DiffusionEngine(
        painter.family, ImageStacks(latents=(recorder,)), capacity=AT_ONCE, forward=None
    )
    guard = RowGuard(_NAME, threshold=0.0, strength=1.0)
    estimates, maps = [], []
    try:
        for first in range(0, len(prompts), AT_ONCE):
            part = prompts[first : first + AT_ONCE]
            engine.start(
                [
                    ImageStart(
                        prompt,
                        seed=seed + first + i,
                        steps=steps,
                        guidance=guidance,
                        guards=[guard],
                    )
                    for i, prompt in enumerate(part)
                ]
            )
            while not engine.step():
                pass
            seen, recorder.seen = recorder.seen, []
            engine.reset()
            estimates.append(torch.stack([each.estimate.cpu() for each in seen], 1))
            shape = (len(part), len(reads), *estimates[-1].shape[3:])
            each_look = [standing_out(each.attended).cpu().reshape(shape) for each in seen]
            maps.append(torch.stack(each_look).mean(0))
            tick(len(part))
    finally:
        engine.close()
    return RecordedTrajectory(torch.cat(estimates), torch.cat(maps))
