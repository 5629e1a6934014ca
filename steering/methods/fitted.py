"""A guard of an image model as its artifact holds it, before it is stacked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FittedGuard:
    """A guard's tensors, one a stream as `NAME.STREAM`, and its settings.

    The readers below raise ValueError naming what is missing or does not hold.
    """

    name: str
    tensors: Mapping[str, NDArray[Any]]
    settings: Mapping[str, Any]

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that the guard was fitted on, one at least."""
        named = self._setting("streams")
        if not isinstance(named, list | tuple) or not named:
            raise ValueError(f"guard {self.name}: streams must be a list of names")
        return tuple(str(stream) for stream in named)

    def tensor(self, kind: str, stream: str, dims: int) -> Tensor:
        """The tensor `kind.stream`, float32, of that many dimensions."""
        key = f"{kind}.{stream}"
        if key not in self.tensors:
            raise ValueError(f"guard {self.name}: has no tensor {key!r}")
        tensor = torch.tensor(self.tensors[key], dtype=torch.float32)
        if tensor.ndim != dims or not tensor.numel():
            raise ValueError(f"guard {self.name}: tensor {key!r} must have {dims} dimensions")
        return tensor

    def number(self, key: str) -> float:
        """A setting that is a finite number."""
        value = self._setting(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"guard {self.name}: {key} must be a finite number, not {value!r}")
        return float(value)

    def flag(self, key: str) -> bool:
        """A setting that is true or false."""
        value = self._setting(key)
        if not isinstance(value, bool):
            raise ValueError(f"guard {self.name}: {key} must be true or false, not {value!r}")
        return value

    def names_by(self, key: str) -> dict[str, tuple[str, ...]]:
        """A setting that has for each of some names a list of others, none of them empty."""
        value = self._setting(key)
        held = value.items() if isinstance(value, Mapping) else ()
        if not held or not all(isinstance(names, list | tuple) and names for _, names in held):
            raise ValueError(f"guard {self.name}: {key} must have a list of names for each name")
        return {str(name): tuple(map(str, names)) for name, names in held}

    def _setting(self, key: str) -> Any:
        if key not in self.settings:
            raise ValueError(f"guard {self.name}: has no setting {key!r}")
        return self.settings[key]


def numbers(guards: Sequence[FittedGuard], key: str, device: torch.device | str) -> Tensor:
    """A numeric setting of all guards, `[guards]`."""
    return torch.tensor([guard.number(key) for guard in guards], device=device)


def by_stream(
    guards: Sequence[FittedGuard], kind: str, dims: int
) -> dict[str, list[Tensor | None]]:
    """Stream → each guard's tensor `kind`, None where it does not look at that stream.

    The last dimension, the stream's width, is the same for all. Raises ValueError.
    """
    streams = dict.fromkeys(stream for guard in guards for stream in guard.streams)
    found: dict[str, list[Tensor | None]] = {}
    for stream in streams:
        own = [
            guard.tensor(kind, stream, dims) if stream in guard.streams else None
            for guard in guards
        ]
        if len({tensor.shape[-1] for tensor in own if tensor is not None}) > 1:
            raise ValueError(f"the guards' tensors {kind}.{stream} are of different widths")
        found[stream] = own
    return found
