"""The conditioning of an image model: the states of its text encoders for a batch of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """One stream for each text encoder, by name: states `[rows, tokens, width]` and masks `[rows,
    tokens]`, False at padding.

    A pooled vector is a stream of one token. A stream is the output of one encoder, before a family
    combines its streams for the denoiser (SDXL concatenates two, SD3 three): guards are fitted and
    act on each stream alone.
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
        for target, source in ((self.states, other.states), (self.masks, other.masks)):
            for name, tensor in target.items():
                tensor[rows] = source[name].to(tensor.dtype)

    def with_states(self, states: Mapping[str, Tensor]) -> Conditioning:
        """The same masks with some streams' states replaced."""
        return Conditioning({**self.states, **states}, self.masks)

    def choose(self, rows: Tensor, other: Conditioning) -> Conditioning:
        """The states of `other` where `rows [rows]` is True; elsewhere these, bit-identical."""
        return self.with_states(
            {
                name: torch.where(rows[:, None, None], other.states[name].to(state.dtype), state)
                for name, state in self.states.items()
            }
        )

    def finite(self) -> Tensor:
        """`[rows]`: whether all states of a row are finite."""
        checks = [state.isfinite().flatten(1).all(1) for state in self.states.values()]
        return torch.stack(checks).all(0)

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """With `change` applied to every tensor."""
        return Conditioning(
            {name: change(tensor) for name, tensor in self.states.items()},
            {name: change(tensor) for name, tensor in self.masks.items()},
        )


def concatenated(parts: Sequence[Conditioning]) -> Conditioning:
    """The rows of all parts, with the streams and the dtypes of the first part."""
    first = parts[0]
    return Conditioning(
        {
            name: torch.cat([part.states[name].to(state.dtype) for part in parts])
            for name, state in first.states.items()
        },
        {name: torch.cat([part.masks[name] for part in parts]) for name in first.masks},
    )
