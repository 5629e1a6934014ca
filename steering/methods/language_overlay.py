"""Low-rank overlays of the linear layers of a language model, behind the gate of a prompt.

What erasers that change weights leave behind, `W' = W + A B` (LoRA adapters, edits, fine-tuned
models), acts as published on every request. Here a linear score of the prompt's tokens, that of
steering guards, decides on which requests it does; all others get the model's own answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.hidden.bank import Placement
from steering.hidden.overlays import LinearOverlay, LowRank
from steering.methods.fitted import FittedGuard, faults_of
from steering.methods.token_gates import GatedStack, require_gates


@dataclass(frozen=True)
class LanguageOverlay:
    """One guard: its `gates [sense layers, width]`, float32, the mean of whose `pool` largest token
    scores decides, and its overlay.

    Raises ValueError for gates of another shape.
    """

    name: str
    sense_layers: tuple[int, ...]
    gates: Tensor
    pool: int
    overlay: LinearOverlay

    def __post_init__(self) -> None:
        require_gates(self)

    @property
    def placement(self) -> Placement:
        """Raises ValueError for an impossible placement."""
        with faults_of(self.name):
            return Placement(self.sense_layers, (), None, self.pool)


class LanguageOverlays(GatedStack):
    """All of one model, stacked: `OverlaidGuards`. Raises ValueError as `TokenGates`."""

    def __init__(
        self, guards: Sequence[LanguageOverlay], device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(guards, device)
        self.overlays: Mapping[str, LinearOverlay] = {guard.name: guard.overlay for guard in guards}

    def act(
        self, layer: int, states: Tensor, guard: Tensor, age: Tensor, strength: Tensor
    ) -> Tensor:
        """Nothing: the overlays act inside the decoder layers."""
        return torch.zeros_like(states)


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> LanguageOverlays:
    """From artifacts, as `guard import` writes them. Raises ValueError naming a fault.

    Tensors: `gates [sense layers, width]`, by group of layers `reads.GROUP [rank, in]` and by layer
    `writes.PATH [rank, out]`; the setting `groups` lists the paths of the layers of each group.
    """
    return LanguageOverlays([loaded(guard) for guard in guards], device)


def loaded(guard: FittedGuard) -> LanguageOverlay:
    """The guard of one artifact. Raises ValueError naming a fault."""
    if guard.settings.get("recheck") is not None:
        raise ValueError(
            f"guard {guard.name}: has a recheck, and an overlay of linear layers decides on the "
            "prompt alone"
        )
    factors: dict[str, LowRank] = {}
    for group, paths in guard.names_by("groups").items():
        read = guard.tensor("reads", group, 2)
        for path in paths:
            write = guard.tensor("writes", path, 2)
            if len(write) != len(read):
                raise ValueError(
                    f"guard {guard.name}: the factors of {path} have the ranks {len(read)} and "
                    f"{len(write)}"
                )
            if path in factors:
                raise ValueError(f"guard {guard.name}: has two overlays of {path}")
            factors[path] = LowRank(read, write.T)
    return LanguageOverlay(
        name=guard.name,
        sense_layers=guard.layers("sense_layers"),
        gates=guard.array("gates", 2),
        pool=int(guard.number("pool")),
        overlay=LinearOverlay(factors, guard.flag("rereads")),
    )
