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
from torch.nn.functional import normalize

from guard.fitting.images.trained.denoisers.kinds import Kind
from guard.fitting.images.trained.denoisers.lesson import DenoiserLesson
from guard.fitting.images.trained.denoisers.trajectories import Trajectories, TrajectorySettings
from guard.fitting.images.trained.terms import led_away, mse
from guard.fitting.overlays.training import Losses, Objective
from steering.images.conditioning import Conditioning

Anchors = Literal["random", "prompts"]
_CANDIDATES = 32
_LEAST = 1e-6
"""The weight of a candidate that equals the concept."""
_SHORTEST, _LONGEST = 0.8, 1.2
"""Of random anchors, in lengths of the concept's states."""


@dataclass(frozen=True)
class Spm:
    """`surrogate` is c₀, `keep` λ. Each update has `batch` latents, with one anchor each.

    `anchors` are Gaussian states, as published, or prompts without the concept; either is taken in
    proportion to `1 - cos(a, c)` of all its states as one vector."""

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
        without = lesson.encode(lesson.sample(lesson.keeping, _CANDIDATES))

        def losses(update: int) -> Losses:
            prompts, at = states.draw(update, self.batch)
            concept = lesson.encode(prompts)
            if self.anchors == "random":
                candidates = random_anchors(concept, _CANDIDATES, lesson.generator)
            else:
                candidates = without
            anchors = far_from(concept, candidates, lesson.generator)
            surrogate = [self.surrogate] * self.batch
            reference, bare, stays = lesson.bare(at, surrogate, concept, anchors)
            erased, anchored = lesson.edited(at, concept, anchors)
            erase = mse(erased, led_away(reference, bare, self.eta))
            return Losses(erase, self.keep * mse(anchored, stays))

        return Objective(losses, {"states": states})


def far_from(
    concept: Conditioning, candidates: Conditioning, generator: torch.Generator
) -> Conditioning:
    """One of the candidates for each row of the concept's, with a probability in proportion to
    `1 - cos(a, c)`: the distribution of a rejection sampler that takes them with that."""
    weights = (1.0 - cosines(concept, candidates)).clamp(min=_LEAST).cpu()
    return candidates.select(torch.multinomial(weights, 1, generator=generator)[:, 0])


def random_anchors(concept: Conditioning, count: int, generator: torch.Generator) -> Conditioning:
    """`count` Gaussian states, each about as long as those of one of the rows, stream by stream."""
    rows = concept.select(torch.randint(concept.rows, (count,), generator=generator))

    def drawn(states: Tensor) -> Tensor:
        noise = torch.randn(states.shape, generator=generator)
        share = torch.rand(len(states), generator=generator)
        noise = noise / noise.flatten(1).norm(dim=1)[:, None, None]
        factor = _SHORTEST + (_LONGEST - _SHORTEST) * share
        length = factor.to(states.device) * states.float().flatten(1).norm(dim=1)
        anchors: Tensor = (length[:, None, None] * noise.to(states.device)).to(states.dtype)
        return anchors

    return rows.with_states({name: drawn(states) for name, states in rows.states.items()})


def cosines(left: Conditioning, right: Conditioning) -> Tensor:
    """`[left rows, right rows]`: of all states of a row as one vector."""
    one, other = (
        torch.cat([states.float().flatten(1) for states in text.states.values()], 1)
        for text in (left, right)
    )
    product: Tensor = normalize(one) @ normalize(other).T
    return product
