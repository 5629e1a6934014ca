"""Safe latent diffusion (arXiv 2211.05105) and the negative prompt, at the guidance seam.

Both predict again, under the conditioning of the concept, and subtract a term from the guidance:
`u + s (c - u - term)`. Equations are those of the first paper; the negative prompt, which puts the
concept in place of the empty prompt, `n + s (c - n)`, is the same with `term = (1 - 1/s) (n - u)`.
Neither has a gate: as published they act on every image. Where one is asked for, a linear score
of the prompt decides (`prompt_score.py`), and the rows in which it is silent keep their bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from steering.images.conditioning import Conditioning
from steering.images.guidance import Predictions
from steering.methods.fitted import FittedGuard
from steering.methods.prompt_score import PromptGate, PromptGated, stacked_gate


@dataclass(frozen=True)
class Safety:
    """Safe latent diffusion's hyperparameters.

    `warmup` is the share of an image's steps that go by before it acts (the paper's δ over its 50
    steps), `scale` s_S, `margin` the threshold λ, `momentum` s_m and `decay` β_m.
    """

    warmup: float
    scale: float
    margin: float
    momentum: float
    decay: float


PRESETS: Mapping[str, Safety] = {
    "weak": Safety(15 / 50, 200.0, 0.0, 0.0, 0.0),
    "medium": Safety(10 / 50, 1000.0, 0.01, 0.3, 0.4),
    "strong": Safety(7 / 50, 2000.0, 0.025, 0.5, 0.7),
    "max": Safety(0.0, 5000.0, 1.0, 0.5, 0.7),
}
"""The paper's four configurations (its appendix)."""


def safety_term(
    at: Predictions,
    *,
    scale: Tensor,
    margin: Tensor,
    momentum: Tensor,
    decay: Tensor,
) -> tuple[Tensor, Tensor]:
    """Equations 4 to 8: the guidance away from the concept and the next step's momentum.

    Hyperparameters have trailing dimensions, to broadcast with predictions `[pairs, ...]`.
    """
    conditional, concept = at.conditional.float(), at.concept.float()
    gap = conditional - concept
    # equations 5 and 6: element by element, and only where the image heads for the concept
    weight = torch.where(gap >= margin, 0.0, (scale * gap.abs()).clamp(max=1.0))
    # equations 4 and 7
    term = weight * (concept - at.unconditional.float()) + momentum * at.memory
    # equation 8
    return term, decay * at.memory + (1.0 - decay) * term


class ConceptGuidance(PromptGated):
    """The parts that methods of this seam share: the extra conditions of each guard, the concept
    first, and a gate that is open for a guard without one."""

    per_guard = 1

    def __init__(self, names: Sequence[str], conditions: Conditioning, gate: PromptGate) -> None:
        super().__init__(names, gate)
        self.conditions: Conditioning | None = conditions


class SafeGuidance(ConceptGuidance):
    """All guards of safe latent diffusion on one model, stacked."""

    def __init__(
        self,
        names: Sequence[str],
        concepts: Conditioning,
        gate: PromptGate,
        safety: Sequence[Safety],
    ) -> None:
        super().__init__(names, concepts, gate)
        device = next(iter(concepts.states.values())).device
        self._safety = {
            field.name: torch.tensor([getattr(settings, field.name) for settings in safety]).to(
                device
            )
            for field in fields(Safety)
        }

    def term(self, at: Predictions) -> tuple[Tensor, Tensor]:
        """See `GuidanceGuards.term`; the seam computes equation 3 from it."""
        warmup = self._safety["warmup"][at.guard]
        parameters = {
            name: beside(values[at.guard], at.concept)
            for name, values in self._safety.items()
            if name != "warmup"
        }
        term, memory = safety_term(at, **parameters)
        active = beside(at.progress >= warmup, term)
        return torch.where(active, term * beside(at.strength, term), 0.0), memory


class NegativePrompt(ConceptGuidance):
    """All negative prompts of one model, stacked."""

    def term(self, at: Predictions) -> tuple[Tensor, Tensor]:
        """See `GuidanceGuards.term`. With strength 1 and one guard on the row: `n + s (c - n)`."""
        share = at.strength * (1.0 - 1.0 / at.scale)
        away = at.concept.float() - at.unconditional.float()
        return beside(share, away) * away, at.memory


def beside(values: Tensor, predictions: Tensor) -> Tensor:
    return values.view(-1, *[1] * (predictions.ndim - 1))


def stack_safety(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> SafeGuidance:
    """From artifacts, as `guard fit safe-guidance` writes them. Raises ValueError."""
    kinds = [field.name for field in fields(Safety)]
    safety = [Safety(**{kind: guard.number(kind) for kind in kinds}) for guard in guards]
    return SafeGuidance(*stacked_concepts(guards, device), safety)


def stack_negative(
    guards: Sequence[FittedGuard], device: torch.device | str = "cpu"
) -> NegativePrompt:
    """From artifacts, as `guard fit negative-prompt` writes them. Raises ValueError."""
    return NegativePrompt(*stacked_concepts(guards, device))


def stacked_concepts(
    guards: Sequence[FittedGuard],
    device: torch.device | str,
    kinds: Sequence[tuple[str, str]] = (("concept", "mask"),),
) -> tuple[list[str], Conditioning, PromptGate]:
    """Names, conditions and gate of artifacts, as `ConceptGuidance` takes them; `kinds` names the
    tensors with the states and the masks of the conditions of each guard. Raises ValueError."""
    if len({guard.streams for guard in guards}) > 1:
        raise ValueError("the concepts of a model's guards must have the same streams")
    parts: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for stream in guards[0].streams:
        states, masks = parts[stream] = (
            [guard.tensor(kind, stream, 2) for guard in guards for kind, _ in kinds],
            [guard.tensor(kind, stream, 1) for guard in guards for _, kind in kinds],
        )
        shapes = {tuple(state.shape) for state in states}
        if len(shapes) > 1 or {shape[:1] for shape in shapes} != {(len(m),) for m in masks}:
            names = " and ".join(f"{name}.{stream}" for kind in kinds for name in kind)
            raise ValueError(f"{names} must be of one shape")
    conditions = Conditioning(
        {stream: torch.stack(states).to(device) for stream, (states, _) in parts.items()},
        {stream: torch.stack(masks).to(device) > 0.5 for stream, (_, masks) in parts.items()},
    )
    return [guard.name for guard in guards], conditions, stacked_gate(guards, device)
