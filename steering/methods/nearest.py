"""Nearest-safe projection: give a token the concept coordinates of its nearest safe token.

In closed form, without an encoder pass or a gradient. A state is split into its part in the
concept's subspace and the rest, `x = P x + (I - P) x`. Among stored states of safe prompts, the
anchors `a`, the one with the nearest rest, `a* = argmin |(I - P)(x - a)|`, gives its coordinates to
the state: `x' = x + λ P (a* - x)`. The rest of the state is kept.

A linear score of the whole prompt decides whether the method acts (`prompt_score.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.methods.fitted import FittedGuard, by_stream, numbers
from steering.methods.prompt_score import PromptScore
from steering.methods.subspaces import due_first, shifted, stacked

_OVERLAP = 0.1
"""Where two due guards' subspaces nearly coincide, a state moves by the mean of their changes."""


@dataclass(frozen=True)
class NearestStream:
    """The guards' subspaces and anchors on one stream.

    `basis [guards, rank, width]`; of each anchor its `rest [guards, anchors, width]`, the `size
    [guards, anchors]` of that squared (infinite where a guard has fewer), and its `coordinates
    [guards, anchors, rank]`.
    """

    basis: Tensor
    rest: Tensor
    size: Tensor
    coordinates: Tensor


def split(anchors: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The part of anchors `[..., n, width]` outside the subspace, and their coordinates in it."""
    coordinates = anchors @ basis.transpose(-1, -2)
    return anchors - coordinates @ basis, coordinates


def nearest(x: Tensor, rest: Tensor, size: Tensor) -> Tensor:
    """For each token and guard the anchor with the nearest rest, `[rows, tokens, guards]`.

    `x [rows, tokens, width]`, `rest [rows, guards, anchors, width]`, `size [rows, guards,
    anchors]`. Since a rest is orthogonal to the subspace, `|(I - P) x - r|²` is `|r|² - 2 x · r`
    plus a term that is the same for all anchors.
    """
    rows, guards, anchors, width = rest.shape
    along = x @ rest.reshape(rows, guards * anchors, width).transpose(1, 2)
    distance: Tensor = size[:, None] - 2.0 * along.reshape(rows, -1, guards, anchors)
    return distance.argmin(-1)


def goals(stream: NearestStream, x: Tensor, due: Tensor) -> tuple[Tensor, Tensor]:
    """The goals of the tokens `x [rows, tokens, width]` for the guards `due [rows, guards]`.

    Returns the due guards' bases `[rows, most, rank, width]`, padded with zeros, and the
    coordinates in them of each token's nearest anchor, `[rows, tokens, most, rank]`.
    """
    guards, real = due_first(due)
    bases = stream.basis[guards].masked_fill(~real[..., None, None], 0.0)
    at = nearest(x, stream.rest[guards], stream.size[guards])
    rows = torch.arange(len(x), device=at.device)[:, None, None]
    columns = torch.arange(guards.shape[1], device=at.device)
    return bases, stream.coordinates[guards][rows, columns, at]


class NearestGuards:
    """All nearest-safe guards of one model, stacked."""

    def __init__(
        self, names: Sequence[str], streams: dict[str, NearestStream], score: PromptScore
    ) -> None:
        self.names: Sequence[str] = tuple(names)
        self._streams = streams
        self._score = score

    def sense(self, text: Conditioning) -> Tensor:
        """Scores `[rows, guards]`; NaN for a row that is not finite."""
        return self._score(text)

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        """Replace the concept coordinates of the due rows' tokens; see `EmbeddingGuards.act`.

        There is no score afterwards: the method does not score again.
        """
        rows = due.any(1).nonzero()[:, 0]
        guards, real = due_first(due[rows])
        by = strength[rows].gather(1, guards).masked_fill(~real, 0.0)
        changed = {}
        for name, stream in self._streams.items():
            before, mask = text.states[name][rows], text.masks[name][rows]
            x = before.float()
            bases, target = goals(stream, x, due[rows])
            shift = target - torch.einsum("rtw,rgkw->rtgk", x, bases)
            shift = shift * by[:, None, :, None]
            moved = shifted(x, bases.flatten(1, 2), shift.flatten(2), rtol=_OVERLAP)
            states = text.states[name].clone()
            states[rows] = torch.where(mask[..., None], moved.to(before.dtype), before)
            changed[name] = states
        return Refinement(
            text.with_states(changed), due.any(1).long(), torch.full_like(strength, torch.nan)
        )


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> NearestGuards:
    """From artifacts, as `guard fit nearest` writes them. Raises ValueError naming a fault."""
    anchors = by_stream(guards, "anchors", 2)
    streams = {
        name: anchored(bases, anchors[name], device)
        for name, bases in by_stream(guards, "basis", 2).items()
    }
    score = PromptScore(by_stream(guards, "weights", 1), numbers(guards, "bias", device))
    return NearestGuards([guard.name for guard in guards], streams, score)


def anchored(
    bases: Sequence[Tensor | None], anchors: Sequence[Tensor | None], device: torch.device | str
) -> NearestStream:
    """The guards' bases `[rank, width]` and anchors `[n, width]` on one stream, stacked."""
    basis = stacked(bases)
    stored = stacked(anchors)
    if stored.shape[-1] != basis.shape[-1]:
        raise ValueError("anchors and basis are of different widths")
    rest, coordinates = split(stored, basis)
    size = (rest * rest).sum(-1)
    counts = torch.tensor([0 if part is None else len(part) for part in anchors])
    missing = torch.arange(stored.shape[1]) >= counts[:, None]
    # a guard that does not read this stream has an empty basis: no anchor moves a state
    size = size.masked_fill(missing, torch.inf)
    return NearestStream(*(part.to(device) for part in (basis, rest, size, coordinates)))
