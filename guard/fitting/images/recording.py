"""Recording trajectories: the clean estimates of a guard's inspections, and attention maps."""

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

BATCH = 16
"""Images that are generated together."""
_NAME = "record"


@dataclass(frozen=True)
class RecordedTrajectory:
    """Recordings of some images, on the CPU.

    `estimates [images, inspections, channels, (frames,) height, width]` are the clean latents
    estimated at each inspection; the last are the finished latents. `maps [images, probes,
    (frames,) height, width]` is each probe's attention map in deviations, the mean over the
    inspections.
    """

    estimates: Tensor
    maps: Tensor


class _Recorder:
    """A latent guard that fires at every inspection, keeps its evidence and changes nothing."""

    def __init__(
        self, channels: int, schedule: InspectionSchedule, probes: Sequence[AttentionProbe]
    ) -> None:
        self.names: Sequence[str] = (_NAME,)
        self.channels = channels
        self.inspections: Sequence[InspectionSchedule] = (schedule,)
        self.probes: Sequence[Sequence[AttentionProbe]] = (tuple(probes),)
        self.evidence: list[LatentEvidence] = []

    def sense(self, estimate: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = len(estimate)
        return torch.ones(rows, len(columns)), torch.zeros(rows, len(columns), 1, 1)

    def locate(self, evidence: LatentEvidence) -> Localization:
        self.evidence.append(evidence)
        nothing = torch.zeros_like(evidence.estimate[:, 0])
        return Localization(nothing, nothing.flatten(1)[:, 0], torch.zeros_like(evidence.estimate))


@torch.no_grad()
def record_trajectories(
    image_model: ImageModel,
    prompts: Sequence[str],
    schedule: InspectionSchedule,
    probes: Sequence[AttentionProbe],
    *,
    steps: int,
    guidance: float,
    seed: int,
    advance: Callable[[int], None] = lambda _rows: None,
) -> RecordedTrajectory:
    """Generate an image of each prompt, as `ImageModel.generate_latents` does, and record the
    inspections of `schedule`, with the maps of `probes`.

    `advance` gets the number of images after each batch.
    """
    recorder = _Recorder(image_model.family.channels, schedule, probes)
    engine = DiffusionEngine(
        image_model.family, ImageStacks(latents=(recorder,)), capacity=BATCH, forward=None
    )
    guard = RowGuard(_NAME, threshold=0.0, strength=1.0)
    estimates, maps = [], []
    try:
        for first in range(0, len(prompts), BATCH):
            part = prompts[first : first + BATCH]
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
            evidence, recorder.evidence = recorder.evidence, []
            engine.reset()
            estimates.append(torch.stack([item.estimate.cpu() for item in evidence], 1))
            shape = (len(part), len(probes), *estimates[-1].shape[3:])
            deviations = [standing_out(item.attended).cpu().reshape(shape) for item in evidence]
            maps.append(torch.stack(deviations).mean(0))
            advance(len(part))
    finally:
        engine.close()
    return RecordedTrajectory(torch.cat(estimates), torch.cat(maps))
