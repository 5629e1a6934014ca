"""The training of an overlay: one loop for every loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from guard.errors import DataError
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.overlays.deltas import Deltas
from guard.fitting.resuming import Resumable, ResumableAdam, updates

EVERY = 20
"""Updates between two states that are kept."""
_PART = "training"


@dataclass(frozen=True)
class Training:
    """Settings of the loop: `rate` is Adam's for the factors, which begin at a change of zero.

    `penalty` is α of the group lasso `α Σ_blocks √(‖A‖² + ‖B‖²)` of GS-LoRA++ (arXiv 2501.09705),
    with a block for each layer: after each update every block is shortened by `rate · α`, and one
    that has become zero stays zero. With `project` the part of an erasing gradient that would undo
    what is kept is taken out (`without_conflict`); else both gradients are summed.
    """

    rank: int = 8
    steps: int = 100
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    penalty: float = 0.0
    project: bool = False
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Losses:
    """Of one update, both scalars: what erases, and what keeps other things as they are."""

    erase: Tensor
    keep: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Objective:
    """What is minimised: the losses of an update by its number, and whatever of them changes from
    update to update."""

    losses: Callable[[int], Losses]
    parts: Mapping[str, Resumable] = field(default_factory=dict)


def train(
    deltas: Deltas,
    objective: Objective,
    training: Training,
    advance: Callable[[int], None] = lambda _steps: None,
    kept: Checkpoints | None = None,
) -> list[float]:
    """Minimise `objective` with Adam over the factors: the losses, a number an update.

    A state is kept every `EVERY` updates; where `kept` has one the training goes on from it, to the
    same bits. The weights of the base must not require gradients
    (`guard.evaluation.m_erasure.learned_words` has `frozen`). Raises DataError for a loss that is
    not finite, and ValueError for one that the factors have no part in: it would train nothing.
    """
    optimiser = torch.optim.Adam(deltas.parameters, lr=training.rate, betas=training.betas)
    made = _Losses()
    parts: dict[str, Resumable] = {
        **objective.parts,
        "deltas": deltas,
        "adam": ResumableAdam(optimiser),
        "losses": made,
    }
    left = updates(
        training.steps, parts, kept or Checkpoints(None), _PART, every=EVERY, advance=advance
    )
    for step in left:
        with torch.enable_grad():
            made.values.append(_update(deltas, objective.losses(step), training, optimiser, step))
    return made.values


class _Losses:
    """The losses so far."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def state(self) -> dict[str, Tensor]:
        return {"values": torch.tensor(self.values, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.values[:] = state["values"].tolist()


def _update(
    deltas: Deltas,
    losses: Losses,
    training: Training,
    optimiser: torch.optim.Adam,
    step: int,
) -> float:
    """One step of Adam; the sum of both losses."""
    value = losses.erase if losses.keep is None else losses.erase + losses.keep
    if not bool(value.isfinite()):
        raise DataError(f"the loss of step {step + 1} is not finite: try a lower rate")
    for side, loss in (("erase", losses.erase), ("keep", losses.keep)):
        if loss is not None and not loss.requires_grad:
            raise ValueError(f"the loss `{side}` is computed outside of the deltas' `on`")
    for parameter, gradient in zip(
        deltas.parameters, _gradients(deltas, losses, training.project), strict=True
    ):
        parameter.grad = gradient
    zeroed = deltas.zeroed if training.penalty else []
    optimiser.step()
    if training.penalty:
        deltas.shrink(training.rate * training.penalty)
        deltas.clear(zeroed)  # what Adam remembers would move them again
    return float(value.detach())


def _gradients(deltas: Deltas, losses: Losses, project: bool) -> list[Tensor | None]:
    def of(loss: Tensor, *, again: bool = False) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(loss, deltas.parameters, allow_unused=True, retain_graph=again)

    if losses.keep is None:
        return list(of(losses.erase))
    if not project:
        return list(of(losses.erase + losses.keep))
    # the two may have a forward in common
    pairs = zip(of(losses.erase, again=True), of(losses.keep), strict=True)
    return [
        keep if erase is None else erase if keep is None else without_conflict(erase, keep) + keep
        for erase, keep in pairs
    ]


def without_conflict(erase: Tensor, keep: Tensor) -> Tensor:
    """The erasing gradient of a tensor without its part against the keeping one (DoCo, arXiv
    2405.15304): `g_e - (g_e · ĝ_p) ĝ_p` where `g_e · ĝ_p < 0`, else `g_e`."""
    along = (erase * keep).sum().clamp(max=0.0)
    return erase - along / keep.square().sum().clamp(min=1e-30) * keep
