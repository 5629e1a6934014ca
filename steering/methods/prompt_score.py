"""The gate of image methods that come without one: a closed-form linear score of a whole prompt,
or the classifiers of a CGCE guard (`head_score.py`).

The linear score is Fisher's discriminant with shrinkage on the mean state of a prompt's tokens, one
term a stream: `w = (Σ + γ tr(Σ)/width · I)⁻¹ (μ_unsafe - μ_safe)`, with Σ the covariance of the
safe prompts. It is scaled such that safe prompts have a mean of 0 and unsafe ones of 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.methods.fitted import FittedGuard
from steering.methods.head_score import HeadScore, stream_heads
from steering.methods.subspaces import pooled, stacked

LINEAR, HEADS = "linear", "heads"
"""What the gate of a guard may be, the setting `gate`."""


def discriminant(unsafe: Tensor, safe: Tensor, ridge: float) -> tuple[Tensor, float]:
    """Weights `[width]` and bias from pooled prompts `[n, width]` and `[m, width]`.

    Raises ValueError where the two have the same mean, or the safe prompts are all alike.
    """
    centre = safe.double().mean(0)
    gap = unsafe.double().mean(0) - centre
    spread = torch.cov(safe.double().T)
    floor = ridge * spread.diagonal().mean()
    if not floor > 0.0:
        raise ValueError("the safe prompts all have the same embedding")
    weights: Tensor = torch.linalg.solve(spread + floor * torch.eye(len(gap)).double(), gap)
    reach = float(weights @ gap)
    if not reach > 0.0:
        raise ValueError("the concept's phrases and the safe prompts have the same embedding")
    weights = weights / reach
    return weights.float(), -float(weights @ centre)


class PromptScore:
    """The scores of several guards, stacked; `weights` has for each stream a vector a guard.

    None stands for a guard that does not read the stream.
    """

    def __init__(
        self,
        weights: Mapping[str, Sequence[Tensor | None]],
        bias: Tensor,
    ) -> None:
        self._weights = {
            stream: stacked([None if vector is None else vector[None] for vector in vectors])
            .to(bias.device)[:, 0]
            .T
            for stream, vectors in weights.items()
            if any(vector is not None for vector in vectors)
        }
        """Stream → `[width, guards]`, zeros for a guard that does not read the stream."""
        self._bias = bias

    def __call__(self, text: Conditioning) -> Tensor:
        """Scores `[rows, guards]`; NaN for a row that is not finite."""
        score = self._bias.expand(text.rows, -1)
        for stream, weights in self._weights.items():
            score = score + pooled(text.states[stream], text.masks[stream]) @ weights
        return score.masked_fill(~text.finite()[:, None], torch.nan)


class PromptGate:
    """The scores of several guards, stacked: linear ones, those of classifiers for guards that
    have some, 1 for guards without a gate."""

    def __init__(
        self,
        score: PromptScore,
        gated: Tensor,
        heads: tuple[HeadScore, Tensor] | None = None,
    ) -> None:
        """`gated [guards]`; `heads` with the guards that have some, `[guards]`."""
        self._score, self._gated, self._heads = score, gated, heads

    def __call__(self, text: Conditioning) -> Tensor:
        """Scores `[rows, guards]`: 1 where there is no gate, NaN for a row that is not finite."""
        score = self._score(text)
        if self._heads is not None:
            heads, headed = self._heads
            score = torch.where(headed, heads(text), score)
        return torch.where(self._gated | score.isnan(), score, 1.0)


class PromptGated:
    """Stacked guards that a gate decides on, and that act in the denoising steps alone."""

    def __init__(self, names: Sequence[str], gate: PromptGate) -> None:
        self.names: Sequence[str] = tuple(names)
        self._gate = gate

    def sense(self, text: Conditioning) -> Tensor:
        """Scores `[rows, guards]`: 1 where there is no gate, NaN for a row that is not finite."""
        return self._gate(text)

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        """Leaves the conditioning alone."""
        return Refinement.none(text, strength)


def stacked_gate(guards: Sequence[FittedGuard], device: torch.device | str) -> PromptGate:
    """From the setting `gated` of artifacts and, where it is true, what its gate is: by the setting
    `gate` "linear", as without it, the tensors `weights` and the setting `bias`, or "heads", the
    tensors of classifiers on the streams that `gate_streams` names.

    Raises ValueError naming what is missing.
    """
    gates = [_gate_of(guard) for guard in guards]
    linear = [guard if gate == LINEAR else None for guard, gate in zip(guards, gates, strict=True)]
    headed = [guard if gate == HEADS else None for guard, gate in zip(guards, gates, strict=True)]
    streams = dict.fromkeys(name for guard in linear if guard for name in guard.streams)
    score = PromptScore(
        {
            name: [
                guard.tensor("weights", name, 1) if guard and name in guard.streams else None
                for guard in linear
            ]
            for name in streams
        },
        torch.tensor([guard.number("bias") if guard else 0.0 for guard in linear], device=device),
    )
    gated = torch.tensor([gate is not None for gate in gates], device=device)
    if not any(headed):
        return PromptGate(score, gated)
    heads = HeadScore(stream_heads(headed, "gate_streams", device))
    has_heads = torch.tensor([guard is not None for guard in headed], device=device)
    return PromptGate(score, gated, (heads, has_heads))


def _gate_of(guard: FittedGuard) -> str | None:
    if not guard.flag("gated"):
        return None
    gate = guard.settings.get("gate", LINEAR)
    if gate not in (LINEAR, HEADS):
        raise ValueError(f"guard {guard.name}: gate must be {LINEAR!r} or {HEADS!r}, not {gate!r}")
    return str(gate)
