"""Input-aware activation steering: MLLMEraser (arXiv 2510.04217), built on AlphaSteer (2506.07022).

The published map of a layer is `h' = h + λ · W P h`, with `P` the projection onto the null space of
the retain activations and `W` the ridge solution of `W P H_f = d 1ᵀ`. Every target column is the
same direction `d`, hence `W P = d wᵀ` has rank one: a scalar gate `w · h` times a direction. Only
the rank-one form is kept; k concepts make a map of rank k.

Shapes: `H` are activations `[n, width]`, one row a token; all results are float64, as solved.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from steering.hidden.bank import HiddenBank, Placement, Room, Tokens
from steering.methods.fitted import FittedGuard, faults_of
from steering.methods.schedules import Schedules, scheduled_directions
from steering.methods.token_gates import GatedStack, require_gates

FOLLOW_UP = 0.5
"""Share of the threshold for a last turn that may go on with a topic without naming it. Tokens of a
concept are fitted to 1 and others to 0, so that halves of thresholds have a meaning."""


def contrast(erasure: Tensor, recall: Tensor) -> Tensor:
    """Direction `d = mean h(erasure) - mean h(recall)`.

    Takes `[n, ..., width]` and `[m, ..., width]`, gives `[..., width]`: leading dimensions after
    the first (answer positions, layers) are contrasted one by one. MLLMEraser, section 3.2.
    """
    return erasure.double().mean(0) - recall.double().mean(0)


def gram(activations: Tensor) -> Tensor:
    """`Hᵀ H`, `[width, width]`: the statistic of the retain set that determines its null space."""
    h = activations.double()
    return h.T @ h


def null_space(retain_gram: Tensor, null_share: float) -> Tensor:
    """Orthonormal basis `V_k [width, k]` of the retain activations' span, to project out.

    `null_share` in (0, 1) is the share of directions that count as the (numerical) null space:
    those of the smallest singular values. `P = I - V_k V_kᵀ`; AlphaSteer keeps 0.3 to 0.6.
    """
    if not 0.0 < null_share < 1.0:
        raise ValueError(f"null_share must lie between 0 and 1, not {null_share}")
    width = retain_gram.shape[0]
    keep = round(width * (1.0 - null_share))
    # eigenvalues ascend: the last `keep` eigenvectors span the retain activations
    vectors: Tensor = torch.linalg.eigh(retain_gram.double()).eigenvectors
    return vectors[:, width - keep :]


def project(h: Tensor, basis: Tensor) -> Tensor:
    """`P h = h - V_k V_kᵀ h` for rows `h [n, width]`."""
    h = h.double()
    return h - (h @ basis) @ basis.T


def hard_gate(forget: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """The gate `w [width]` of the published closed form, solved in the dual.

    `W P = d wᵀ` with `w = X (Xᵀ X + γ I)⁻¹ 1` and `X = P H_f`: an n x n system instead of the
    width x width pseudo-inverse of the paper's equation for `W`.
    """
    x = project(forget, basis)
    ones = torch.ones(len(x), dtype=x.dtype)
    kernel = x @ x.T + ridge * torch.eye(len(x), dtype=x.dtype)
    weights: Tensor = torch.linalg.solve(kernel, ones)
    return x.T @ weights


def soft_gate(forget: Tensor, retain_gram: Tensor, ridge: float, forget_weight: float) -> Tensor:
    """The gate with the projection's hard edge softened: every retain direction by its energy.

    `w = argmin Σ_f a (w·h - 1)² + Σ_r (w·h)² + γ |w|²`, with `a` = `forget_weight` and γ = `ridge`
    times the mean retain energy per direction. As γ → 0 it tends to the null-space solution when
    the retain set leaves a null space, and it stays defined when the set has full rank (many
    retain tokens), where the hard projection has to cut through directions that both sets use.
    """
    f = forget.double()
    width = f.shape[1]
    gamma = ridge * retain_gram.diagonal().mean()
    system = retain_gram + forget_weight * gram(f) + gamma * torch.eye(width, dtype=f.dtype)
    gate: Tensor = torch.linalg.solve(system, forget_weight * f.sum(0))
    return gate


@dataclass(frozen=True)
class SteerGuard:
    """The tensors of one steering guard, float32.

    The score of a token is `Σ_l gates[l] · h_l` over the layers `sense_layers`, with `gates [sense
    layers, width]`. `directions [steps, act layers, width]` are added after `act_layers`: the first
    at the token where the guard fires, the next ones at the tokens that follow, nothing after the
    last. `pool`, `rest` and `tokens` are as in `Placement`.

    Raises ValueError for tensors of other shapes.
    """

    name: str
    sense_layers: tuple[int, ...]
    gates: Tensor
    act_layers: tuple[int, ...]
    directions: Tensor
    pool: int = 1
    rest: int | None = None
    tokens: Tokens = "all"

    def __post_init__(self) -> None:
        require_gates(self)
        shape = (len(self.act_layers), self.width)
        if self.directions.ndim != 3 or tuple(self.directions.shape[1:]) != shape:
            raise ValueError(f"guard {self.name}: directions must be [steps, act layers, width]")

    @property
    def width(self) -> int:
        return self.gates.shape[-1]

    @property
    def placement(self) -> Placement:
        """Raises ValueError for an impossible placement."""
        steps = len(self.directions)
        with faults_of(self.name):
            return Placement(
                self.sense_layers,
                self.act_layers,
                steps,
                self.pool,
                self.rest,
                self.tokens,
                FOLLOW_UP,
            )


class SteerGuards(GatedStack):
    """All steering guards of one model, stacked: a `HiddenGuards`.

    Raises ValueError for an impossible placement, or guards of different widths.
    """

    def __init__(self, guards: Sequence[SteerGuard], device: torch.device | str = "cpu") -> None:
        super().__init__(guards, device)
        self._schedules = Schedules(guards, device)

    def act(
        self, layer: int, states: Tensor, guard: Tensor, age: Tensor, strength: Tensor
    ) -> Tensor:
        """The due directions, scaled; see `HiddenGuards.act`."""
        return self._schedules.act(layer, states, guard, age, strength)

    def with_room(self, room: Room) -> SteerGuards:
        """See `RoomyGuards.with_room`."""
        roomy = copy(self)
        roomy._schedules = self._schedules.with_room(room)
        roomy._gates = self._gates.with_room(room)
        return roomy

    def tensors(self) -> list[Tensor]:
        """See `RoomyGuards.tensors`."""
        return [*self._gates.tensors(), *self._schedules.tensors()]

    def require_room(self, other: SteerGuards) -> None:
        """See `RoomyGuards.require_room`: a stack of the same room always has it."""

    def take(self, other: SteerGuards) -> None:
        """See `RoomyGuards.take`."""
        self._gates.take(other._gates)
        self._schedules.take(other._schedules)
        self.names, self.placements = other.names, other.placements


def bank_of(guards: Sequence[SteerGuard], device: torch.device | str = "cpu") -> HiddenBank:
    """A bank of only these guards, any number of them."""
    return HiddenBank([SteerGuards(guards, device)] if guards else [], device)


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> SteerGuards:
    """From artifacts, as `guard fit steer` writes them. Raises ValueError naming a fault.

    Tensors: `gates [sense layers, width]` and `directions [act layers, width]`. The setting
    `schedule` has the share of the directions at the token where the guard fires and at those that
    follow.
    """
    return SteerGuards([loaded(guard) for guard in guards], device)


def loaded(guard: FittedGuard) -> SteerGuard:
    """The guard of one artifact. Raises ValueError naming a fault."""
    return SteerGuard(
        name=guard.name,
        sense_layers=guard.layers("sense_layers"),
        gates=guard.array("gates", 2),
        act_layers=guard.layers("act_layers"),
        directions=scheduled_directions(guard),
        pool=int(guard.number("pool")),
        rest=int(guard.number("rest")),
        # artifacts from before there were images have no such setting
        tokens=cast(Tokens, guard.settings.get("tokens", "all")),
    )
