"""What the text encoders of a generator said of a batch of prompts: the embedding seam's tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """One stream a text encoder, by name: states `[rows, tokens, width]`, and which are real.

    A pooled vector is a stream of one token. Before a family puts its streams together for the
    denoiser (SDXL concatenates two, SD3 three), each is as its own encoder gave it: guards are
    fitted and act on each alone. `masks [rows, tokens]` are False at padding.
    """

    states: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]

    @property
    def rows(self) -> int:
        return len(next(iter(self.states.values())))

    def select(self, rows: Tensor | slice) -> Conditioning:
        """These rows, by index, mask or slice."""
        return self.map(lambda tensor: tensor[rows])

    def expand(self, rows: int) -> Conditioning:
        """The first row, `rows` times."""
        return self.map(lambda tensor: tensor[:1].expand(rows, *tensor.shape[1:]))

    def clone(self) -> Conditioning:
        """A copy that may be written to."""
        return self.map(torch.clone)

    def put(self, rows: Tensor | slice, other: Conditioning) -> None:
        """Write `other` over these rows, in place."""
        for mine, theirs in ((self.states, other.states), (self.masks, other.masks)):
            for name, tensor in mine.items():
                tensor[rows] = theirs[name].to(tensor.dtype)

    def with_states(self, states: Mapping[str, Tensor]) -> Conditioning:
        """The same masks with some streams' states replaced."""
        return Conditioning({**self.states, **states}, self.masks)

    def choose(self, rows: Tensor, other: Conditioning) -> Conditioning:
        """`other`'s states where `rows [rows]` is True, this one's own bits elsewhere."""
        return self.with_states(
            {
                name: torch.where(rows[:, None, None], other.states[name].to(mine.dtype), mine)
                for name, mine in self.states.items()
            }
        )

    def finite(self) -> Tensor:
        """`[rows]`: whether a row holds neither NaN nor infinity."""
        checks = [state.isfinite().flatten(1).all(1) for state in self.states.values()]
        return torch.stack(checks).all(0)

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """`change` of every tensor."""
        return Conditioning(
            {name: change(tensor) for name, tensor in self.states.items()},
            {name: change(tensor) for name, tensor in self.masks.items()},
        )


def concatenated(parts: Sequence[Conditioning]) -> Conditioning:
    """Rows one behind the other, of the first part's streams and in its precision."""
    first = parts[0]
    return Conditioning(
        {
            name: torch.cat([part.states[name].to(own.dtype) for part in parts])
            for name, own in first.states.items()
        },
        {name: torch.cat([part.masks[name] for part in parts]) for name in first.masks},
    )
