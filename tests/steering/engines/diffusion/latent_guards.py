"""Latent guards that are easy to follow, and engines that have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.images.latent import AttentionProbe, InspectionSchedule, LatentEvidence, Localization
from steering.methods.fitted import FittedGuard
from steering.methods.irece import IreceGuards
from tests.classifiers.nets import random_net
from tests.steering.engines.diffusion.running import (
    Generated,
    Readings,
    new_engine,
    run_with_readings,
)
from tests.steering.engines.diffusion.tiny import shared

ALWAYS = InspectionSchedule(1.0, 1000)
LAST = InspectionSchedule(1.0, 1)


class FillGuards:
    """Fills the left half of an image with `value`, with `whole` all of it.

    `score` is a function of the estimates; 0 by default, and more by one for each guard.
    """

    def __init__(
        self,
        *names: str,
        channels: int = 8,
        schedule: InspectionSchedule = ALWAYS,
        value: float = 7.0,
        whole: bool = False,
        score: Callable[[Tensor], Tensor] | None = None,
        probes: Sequence[AttentionProbe] = (),
    ) -> None:
        self.names: Sequence[str] = names
        self.channels = channels
        self.inspections: Sequence[InspectionSchedule] = [schedule] * len(names)
        self.probes: Sequence[Sequence[AttentionProbe]] = [tuple(probes)] * len(names)
        self.evidence: list[LatentEvidence] = []
        self.estimates: list[Tensor] = []
        self._value, self._whole, self._score = value, whole, score

    def sense(self, estimate: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        self.estimates.append(estimate)
        rows = torch.zeros(len(estimate)) if self._score is None else self._score(estimate)
        score = rows[:, None] + torch.tensor(columns)
        return score, torch.zeros(len(estimate), len(columns), 1, 1)

    def locate(self, evidence: LatentEvidence) -> Localization:
        self.evidence.append(evidence)
        mask = torch.ones_like(evidence.estimate[:, 0])
        if not self._whole:
            mask[..., mask.shape[-1] // 2 :] = 0.0
        replacement = torch.full_like(evidence.estimate, self._value)
        return Localization(mask, torch.full((len(mask),), 2.5), replacement)


def latent_engine(family: Family, *stacks: FillGuards, **options: Any) -> DiffusionEngine:
    return new_engine(family, latents=stacks, **options)


def run_and_close(
    engine: DiffusionEngine, starts: Sequence[ImageStart], joining: int = 9
) -> tuple[Generated, Readings]:
    generated, readings = run_with_readings(engine, starts, joining=joining)
    engine.close()
    return generated, readings


def fill_guards(name: str, *names: str, **options: Any) -> FillGuards:
    return FillGuards(*(names or ("p",)), channels=shared(name).channels, **options)


def random_irece(family: Family, *names: str) -> IreceGuards:
    """IRECE with random classifiers of the size of fitted ones."""
    layer, module = next(iter(family.readable.items()))
    width = module.inner_dim // module.heads  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    settings: dict[str, Any] = {"level": 1.0, "looks": 9, "votes": 1.0, "mask": 0.4}
    guards = [
        FittedGuard(name, {}, settings | {"smoothing": 0.05 + 0.2 * i, "replacement": "background"})
        for i, name in enumerate(names)
    ]
    probes = [
        [AttentionProbe(layer, 0, *torch.randn(2, 3, width, generator=generator))] for _ in names
    ]
    nets = [random_net(4, family.channels, hidden=(24, 32), seed=i) for i in range(len(names))]
    return IreceGuards(guards, probes, nets, "cpu")
