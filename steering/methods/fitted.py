"""A guard as its artifact holds it, before it is stacked: named tensors and settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@contextmanager
def faults_of(guard: str) -> Iterator[None]:
    """Name the guard in ValueErrors that are raised inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"guard {guard}: {error}") from error


@dataclass(frozen=True, eq=False)
class FittedGuard:
    """The tensors and settings of one artifact, read with checks.

    Each method below raises ValueError naming the tensor or setting that is missing or wrong. A
    guard of an image model has one tensor for each stream of the text encoders, `NAME.STREAM`.
    """

    name: str
    tensors: Mapping[str, NDArray[Any]]
    settings: Mapping[str, Any]

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that the guard was fitted on, one at least."""
        return self.names("streams")

    def array(self, key: str, *dims: int) -> Tensor:
        """The tensor `key`, float32, of one of these numbers of dimensions."""
        import torch  # here alone: a proxy stacks screens of text where there is no torch

        if key not in self.tensors:
            raise ValueError(f"guard {self.name}: has no tensor {key!r}")
        tensor = torch.tensor(self.tensors[key], dtype=torch.float32)
        if tensor.ndim not in dims or not tensor.numel():
            counts = " or ".join(map(str, dims))
            raise ValueError(f"guard {self.name}: tensor {key!r} must have {counts} dimensions")
        return tensor

    def tensor(self, kind: str, stream: str, *dims: int) -> Tensor:
        """The tensor `kind.stream`, float32, of one of these numbers of dimensions."""
        return self.array(f"{kind}.{stream}", *dims)

    def number(self, key: str) -> float:
        """A setting that is a finite number."""
        return self._number(key, self._setting(key))

    def optional_number(self, key: str) -> float | None:
        """A setting that is a finite number; None where it is null or left out."""
        value = self.settings.get(key)
        return None if value is None else self._number(key, value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A setting that is a list of finite numbers."""
        return tuple(self._number(key, value) for value in self._list(key))

    def layers(self, key: str) -> tuple[int, ...]:
        """A setting that is a list of layers, whole numbers."""
        values = self._list(key)
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            raise ValueError(f"guard {self.name}: {key} must be a list of whole numbers")
        return tuple(values)

    def flag(self, key: str) -> bool:
        """A setting that is true or false."""
        value = self._setting(key)
        if not isinstance(value, bool):
            raise ValueError(f"guard {self.name}: {key} must be true or false, not {value!r}")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """A setting that is a list of names, one at least."""
        names = self._setting(key)
        if not isinstance(names, list | tuple) or not names:
            raise ValueError(f"guard {self.name}: {key} must be a list of names")
        return tuple(map(str, names))

    def names_by(self, key: str) -> dict[str, tuple[str, ...]]:
        """A setting that maps names to lists of names, none of them empty."""
        value = self._setting(key)
        lists = value.items() if isinstance(value, Mapping) else ()
        if not lists or not all(isinstance(names, list | tuple) and names for _, names in lists):
            raise ValueError(f"guard {self.name}: {key} must have a list of names for each name")
        return {str(name): tuple(map(str, names)) for name, names in lists}

    def _number(self, key: str, value: Any) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"guard {self.name}: {key} must be a finite number, not {value!r}")
        return float(value)

    def _list(self, key: str) -> Sequence[Any]:
        value = self._setting(key)
        if not isinstance(value, list | tuple):
            raise ValueError(f"guard {self.name}: {key} must be a list, not {value!r}")
        return value

    def _setting(self, key: str) -> Any:
        if key not in self.settings:
            raise ValueError(f"guard {self.name}: has no setting {key!r}")
        return self.settings[key]


def numbers(guards: Sequence[FittedGuard], key: str, device: torch.device | str) -> Tensor:
    """A numeric setting of all guards, `[guards]`."""
    import torch

    return torch.tensor([guard.number(key) for guard in guards], device=device)


def by_stream(
    guards: Sequence[FittedGuard], kind: str, dims: int
) -> dict[str, list[Tensor | None]]:
    """Stream → each guard's tensor `kind`, None for a guard that was not fitted on that stream.

    The last dimension, the width of the stream, is the same for all. Raises ValueError.
    """
    streams = dict.fromkeys(stream for guard in guards for stream in guard.streams)
    tensors: dict[str, list[Tensor | None]] = {}
    for stream in streams:
        stream_tensors = [
            guard.tensor(kind, stream, dims) if stream in guard.streams else None
            for guard in guards
        ]
        widths = {tensor.shape[-1] for tensor in stream_tensors if tensor is not None}
        if len(widths) > 1:
            raise ValueError(f"the guards' tensors {kind}.{stream} are of different widths")
        tensors[stream] = stream_tensors
    return tensors
