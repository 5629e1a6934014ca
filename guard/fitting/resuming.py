"""Trainings that go on to the same bits where they were killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from guard.fitting.checkpoints import Checkpoints

_DONE = "updates"


class Resumable(Protocol):
    """Something that changes from update to update; its state is tensors by name."""

    def state(self) -> dict[str, Tensor]:
        """The state now. The tensors may be those that go on to change."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of the same thing. Raises KeyError for one that lacks a tensor."""


class ResumableGenerator:
    """A generator of random numbers."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state(self) -> dict[str, Tensor]:
        return {"state": self._generator.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._generator.set_state(state["state"])


class ResumableAdam:
    """The moments of torch's Adam, of the parameters that have had a gradient."""

    def __init__(self, optimiser: torch.optim.Adam) -> None:
        self._optimiser = optimiser
        self._parameters = [p for group in optimiser.param_groups for p in group["params"]]

    def state(self) -> dict[str, Tensor]:
        moments = self._optimiser.state
        return {
            f"{index}.{name}": tensor
            for index, parameter in enumerate(self._parameters)
            for name, tensor in moments.get(parameter, {}).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for key, tensor in state.items():
            index, _, name = key.partition(".")
            parameter = self._parameters[int(index)]
            # Adam counts its steps on the CPU
            device = tensor.device if name == "step" else parameter.device
            self._optimiser.state[parameter][name] = tensor.to(device)


def gathered(parts: Mapping[str, Resumable]) -> dict[str, Tensor]:
    """The states of all parts as one."""
    return {
        f"{part}/{name}": tensor.detach().cpu()
        for part, of in parts.items()
        for name, tensor in of.state().items()
    }


def scattered(parts: Mapping[str, Resumable], state: Mapping[str, Tensor]) -> None:
    """Restore all parts from what `gathered` gave."""
    for part, of in parts.items():
        of.restore(
            {
                name.removeprefix(f"{part}/"): tensor
                for name, tensor in state.items()
                if name.startswith(f"{part}/")
            }
        )


def updates(
    total: int,
    parts: Mapping[str, Resumable],
    kept: Checkpoints,
    name: str,
    *,
    every: int,
    advance: Callable[[int], None],
) -> Iterator[int]:
    """The numbers of the updates that are left of a training; the body of the loop makes each.

    A state of all `parts` is kept under `name` after every so many updates, and where there is one
    the training goes on from it. `advance` is called with the number of updates that were made.
    """
    done = 0
    if (state := kept.found(name)) is not None:
        done = int(state.pop(_DONE))
        scattered(parts, state)
        advance(done)
    for number in range(done, total):
        yield number
        advance(1)
        if (number + 1) % every == 0:
            kept.keep(name, {**gathered(parts), _DONE: torch.tensor(number + 1)})
