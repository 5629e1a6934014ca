"""Guards of several methods to stacks, so that any set of guards that hold one by one goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from steering.methods import Method
from steering.methods.fitted import FittedGuard


@dataclass(frozen=True, eq=False)
class MethodGuard:
    """A fitted guard with the entry of its method."""

    method: Method
    fitted: FittedGuard

    @property
    def name(self) -> str:
        return self.fitted.name

    def named(self, name: str) -> MethodGuard:
        """The same guard under another name."""
        return replace(self, fitted=replace(self.fitted, name=name))


def stacks(guards: Sequence[MethodGuard], device: torch.device | str = "cpu") -> list[Any]:
    """As `stacks_by_method`, without the methods."""
    return [stack for _, stack in stacks_by_method(guards, device)]


def stacks_by_method(
    guards: Sequence[MethodGuard], device: torch.device | str = "cpu"
) -> list[tuple[Method, Any]]:
    """The stacked guards of each method, in the order in which methods come first.

    Guards of one method that cannot be stacked with each other (tensors of different shapes that
    the method does not fill up) come as several stacks. Raises ValueError for a guard that does not
    hold by itself.
    """
    by_method: dict[str, list[MethodGuard]] = {}
    for guard in guards:
        by_method.setdefault(guard.method.name, []).append(guard)
    return [
        (group[0].method, stack) for group in by_method.values() for stack in _stacks(group, device)
    ]


def _stacks(guards: Sequence[MethodGuard], device: torch.device | str) -> list[Any]:
    method = guards[0].method
    try:
        return [method.stacked([guard.fitted for guard in guards], device)]
    except ValueError:
        if len(guards) == 1:
            raise
    groups: list[list[FittedGuard]] = []
    for guard in guards:
        for group in groups:
            try:
                method.stacked([*group, guard.fitted], "cpu")
            except ValueError:
                continue
            group.append(guard.fitted)
            break
        else:
            groups.append([guard.fitted])
    return [method.stacked(group, device) for group in groups]
