"""SAFREE: project a concept's subspace out of the tokens that carry it (arXiv 2410.12761).

The paper masks each token of the prompt in turn, encodes each masked prompt and measures
how far its pooled embedding lies from the concept's subspace (equations 2 to 4); tokens whose
absence moves the prompt away from the concept are projected out of it (equation 5), for a number
of denoising steps that grows with how much the projection changes (equation 6). Here the pooled
embedding is the mean of the token states, so that masking token i is `(sum - x_i) / (n - 1)` and
costs no further pass of the encoder; and since one conditioning serves all steps, equation 6 sets
a weight instead of a number of steps. Other differences are listed in docs/methods/safree.md.

`x` are states `[rows, tokens, width]`; everything is relative to `centre`, the mean of ordinary
prompts, since encoders place all prompts far from zero in one common direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.methods.fitted import FittedGuard, by_stream, numbers
from steering.methods.subspaces import due_first, real_sum, shifted, stacked


@dataclass(frozen=True)
class SafreeStream:
    """The guards' subspaces on one stream: `basis [guards, rank, width]`, `centre [guards, width]`.

    `scoring [guards, rank]` marks the directions that count for the score; all directions are
    projected out of the tokens that trigger.
    """

    basis: Tensor
    centre: Tensor
    scoring: Tensor


def energies(x: Tensor, stream: SafreeStream) -> tuple[Tensor, Tensor]:
    """Of `x - centre`: squared coordinates `[..., guards, rank]`, squared norm `[..., guards]`.

    Expanded, so that no tensor of the size states times guards is allocated.
    """
    guards, rank, width = stream.basis.shape
    along = (x @ stream.basis.reshape(-1, width).T).reshape(*x.shape[:-1], guards, rank)
    along = along - (stream.basis @ stream.centre[..., None])[..., 0]
    whole = (x * x).sum(-1, keepdim=True) - 2.0 * x @ stream.centre.T
    return along * along, (whole + (stream.centre * stream.centre).sum(-1)).clamp(min=1e-12)


def triggers(x: Tensor, mask: Tensor, stream: SafreeStream, alpha: Tensor) -> Tensor:
    """`[rows, tokens, guards]`: the tokens without which the prompt is further from the concept.

    Equation 4: token i is one where `d_i > (1 + α) · mean of the other tokens' d`, `d_i` the
    distance of the prompt without token i from the subspace, as a share of its own length.
    """
    count = mask.sum(1)[:, None, None]
    without = (real_sum(x, mask)[:, None] - x) / (count - 1).clamp(min=1)
    along, whole = energies(without, stream)
    distance = (1.0 - along.sum(-1) / whole).clamp(min=0.0).sqrt()
    distance = distance.masked_fill(~mask[..., None], 0.0)
    others = (distance.sum(1, keepdim=True) - distance) / (count - 1).clamp(min=1)
    return (distance > (1.0 + alpha) * others) & mask[..., None] & (count > 1)


def change(x: Tensor, triggering: Tensor, stream: SafreeStream) -> Tensor:
    """Equation 6's measure `[rows, guards]`: mean of `1 - cos(x, projected x)` over the
    `triggering [rows, tokens, guards]` tokens.

    Zero where no token triggers.
    """
    along, whole = energies(x, stream)
    share = (along * stream.scoring).sum(-1) / whole
    moved = (1.0 - (1.0 - share).clamp(min=0.0).sqrt()).masked_fill(~triggering, 0.0)
    return moved.sum(1) / triggering.sum(1).clamp(min=1)


class SafreeGuards:
    """All SAFREE guards of one model, stacked.

    A guard's score is `change` on the stream where it is largest; it decides whether and how
    strongly tokens are projected. `weight` of equation 6 is `σ(slope · (score - middle))`.
    """

    def __init__(
        self,
        names: Sequence[str],
        streams: dict[str, SafreeStream],
        *,
        alpha: Tensor,
        slope: Tensor,
        middle: Tensor,
    ) -> None:
        self.names: Sequence[str] = tuple(names)
        self._streams = streams
        self._alpha, self._slope, self._middle = alpha, slope, middle

    def sense(self, text: Conditioning) -> Tensor:
        """Scores `[rows, guards]`; NaN for a row that is not finite."""
        score = torch.zeros(text.rows, len(self.names), device=self._alpha.device)
        for name, stream in self._streams.items():
            x, mask = text.states[name].float(), text.masks[name]
            score = score.maximum(change(x, triggers(x, mask, stream, self._alpha), stream))
        return score.masked_fill(~text.finite()[:, None], torch.nan)

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        """Project the triggering tokens of the due rows; see `EmbeddingGuards.act`.

        There is no score afterwards: the method does not score again.
        """
        rows = due.any(1).nonzero()[:, 0]
        part = text.select(rows)
        weight = torch.sigmoid(self._slope * (self.sense(part) - self._middle)) * strength[rows]
        weight = weight.masked_fill(~due[rows], 0.0)
        changed = {}
        for name, stream in self._streams.items():
            states = text.states[name].clone()
            states[rows] = self._projected(
                part.states[name], part.masks[name], stream, due[rows], weight
            )
            changed[name] = states
        return Refinement(
            text.with_states(changed), due.any(1).long(), torch.full_like(strength, torch.nan)
        )

    def _projected(
        self, states: Tensor, mask: Tensor, stream: SafreeStream, due: Tensor, weight: Tensor
    ) -> Tensor:
        """`x - w · P (x - centre)`, P on the joint subspace of a row's due guards."""
        x = states.float()
        triggering = triggers(x, mask, stream, self._alpha)
        if x.shape[1] == 1:  # a pooled vector has no token to mask out: it is always projected
            triggering = mask[..., None].expand_as(triggering)
        share = (triggering * weight[:, None]).amax(-1, keepdim=True)
        guards, real = due_first(due & stream.basis.any(-1).any(-1))
        bases = stream.basis[guards].masked_fill(~real[..., None, None], 0.0).flatten(1, 2)
        centre = (stream.centre[guards] * real[..., None]).sum(1)
        centre = centre / real.sum(1, keepdim=True).clamp(min=1)
        offset = x - centre[:, None]
        moved = shifted(x, bases, -share * (offset @ bases.transpose(1, 2)), rtol=1e-5)
        return torch.where(share > 0.0, moved.to(states.dtype), states)


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> SafreeGuards:
    """From artifacts, as `guard fit safree` writes them. Raises ValueError naming a fault."""
    scoring_rank = numbers(guards, "sense_rank", device)
    centres = by_stream(guards, "centre", 1)
    streams = {}
    for name, bases in by_stream(guards, "basis", 2).items():
        basis = stacked(bases).to(device)
        centre = stacked([None if part is None else part[None] for part in centres[name]])[:, 0]
        if centre.shape[-1] != basis.shape[-1]:
            raise ValueError(f"basis.{name} and centre.{name} are of different widths")
        scoring = torch.arange(basis.shape[1], device=device) < scoring_rank[:, None]
        streams[name] = SafreeStream(basis, centre.to(device), scoring)
    return SafreeGuards(
        [guard.name for guard in guards],
        streams,
        alpha=numbers(guards, "alpha", device),
        slope=numbers(guards, "slope", device),
        middle=numbers(guards, "middle", device),
    )
