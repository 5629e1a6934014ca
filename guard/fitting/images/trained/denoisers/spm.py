"""SPM (arXiv 2312.16145): one-dimensional adapters that erase, anchored where they must not act.

`‖ε_θ(z, c) - [ε(c₀) - η (ε(c) - ε(c₀))]‖² + λ ‖ε_θ(z, a) - ε(z, a)‖²` over anchors a, with c₀ a
surrogate. Latents are those of images that stopped on their way, the adapters on. Where the guard
serves, the adapters' strength follows the prompt (`transport`, `steering/methods/gated_overlays`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guard.fitting.images.trained.denoisers.kinds import Kind
from guard.fitting.images.trained.denoisers.lesson import DenoiserLesson
from guard.fitting.images.trained.denoisers.trajectories import Trajectories, TrajectorySettings
from guard.fitting.images.trained.terms import led_away, mse
from guard.fitting.overlays.training import Losses, Objective
from steering.images.conditioning import Conditioning

Anchors = Literal["random", "prompts"]
_MOST_TRIES = 100
_SHORTEST, _LONGEST = 0.8, 1.2
"""Of random anchors, in lengths of the concept's states."""


@dataclass(frozen=True)
class Spm:
    """`surrogate` is c₀, `keep` λ. Each update has `batch` latents, with one anchor each.

    `anchors` are Gaussian states, as published, or prompts without the concept; either is taken
    with the probability `1 - cos(a, c)` of all its states as one vector."""

    surrogate: str = ""
    eta: float = 1.0
    keep: float = 1000.0
    anchors: Anchors = "prompts"
    batch: int = 4
    trajectories: TrajectorySettings = field(default_factory=TrajectorySettings)

    name: ClassVar[str] = "spm"
    kinds: ClassVar[tuple[Kind, ...]] = (
        *("cross-attention", "self-attention"),
        *("feed-forward", "projection"),
    )

    def objective(self, lesson: DenoiserLesson) -> Objective:
        states = Trajectories(lesson, lesson.phrases, self.trajectories, edited=True)

        def losses(update: int) -> Losses:
            prompts, at = states.draw(update, self.batch)
            concept = lesson.encode(prompts)
            anchors = self._anchors(lesson, concept)
            surrogate = [self.surrogate] * self.batch
            reference, bare, stays = lesson.bare(at, surrogate, concept, anchors)
            erased, anchored = lesson.edited(at, concept, anchors)
            erase = mse(erased, led_away(reference, bare, self.eta))
            return Losses(erase, self.keep * mse(anchored, stays))

        return Objective(losses, {"states": states})

    def _anchors(self, lesson: DenoiserLesson, concept: Conditioning) -> Conditioning:
        """One anchor for each row of the concept's conditionings."""
        anchors, left = concept.clone(), torch.ones(concept.rows, dtype=torch.bool)
        for _ in range(_MOST_TRIES):
            if self.anchors == "random":
                found = random_anchors(concept, lesson.generator)
            else:
                found = lesson.encode(lesson.sample(lesson.keeping, concept.rows))
            chance = torch.rand(concept.rows, generator=lesson.generator)
            taken = left & (chance < 1.0 - cosine(found, concept).cpu())
            rows = taken.nonzero()[:, 0].to(next(iter(concept.states.values())).device)
            anchors.put(rows, found.select(rows))
            left &= ~taken
            if not bool(left.any()):
                return anchors
        # states that all but equal the concept's are no worse than others after so many tries
        rows = left.nonzero()[:, 0].to(next(iter(concept.states.values())).device)
        anchors.put(rows, found.select(rows))
        return anchors


def random_anchors(concept: Conditioning, generator: torch.Generator) -> Conditioning:
    """Gaussian states of about the length of each row's, stream by stream."""

    def drawn(states: Tensor) -> Tensor:
        noise = torch.randn(states.shape, generator=generator)
        share = torch.rand(len(states), generator=generator)
        noise = noise / noise.flatten(1).norm(dim=1)[:, None, None]
        factor = _SHORTEST + (_LONGEST - _SHORTEST) * share
        length = factor.to(states.device) * states.float().flatten(1).norm(dim=1)
        return (length[:, None, None] * noise.to(states.device)).to(states.dtype)

    return concept.with_states({name: drawn(states) for name, states in concept.states.items()})


def cosine(left: Conditioning, right: Conditioning) -> Tensor:
    """`[rows]`: of all states of a row as one vector."""
    one, other = (
        torch.cat([states.float().flatten(1) for states in text.states.values()], 1)
        for text in (left, right)
    )
    return torch.cosine_similarity(one, other)
