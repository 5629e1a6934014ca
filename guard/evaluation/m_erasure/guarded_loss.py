"""The guards of a policy, differentiable for an attacker with the weights.

The entry of a method in the table of methods says how its change is differentiated: "exact" through
its computation, "straight-through" with the identity in its place (Athalye et al., arXiv
1802.00420), "none" without a gradient of its change or its score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from guard.errors import DataError
from guard.evaluation.m_erasure.denoising import Views, bare
from guard.plans.images import ImagePlan, ImagePlans
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.seams.projections import OverlaySeam
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import EmbeddingBank, EmbeddingGuards, acting
from steering.methods import Gradient

Gradients = Mapping[str, Gradient]
"""Guard → the gradient of its method."""


class Differentiable(Protocol):
    """Stacked guards of the embedding seam whose method has an exact gradient."""

    def act_differentiably(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Conditioning:
        """As `EmbeddingGuards.act` on rows that all have a due guard, with the graph."""


def gradients_of(plan: ImagePlan) -> Gradients:
    """The gradients of the guards of a plan."""
    return {guard.name: guard.method.gradient for guard in plan.guards}


def through_guards(
    bank: EmbeddingBank, guards: Sequence[RowGuard], text: Conditioning, gradients: Gradients
) -> tuple[Conditioning, Tensor]:
    """The guarded conditioning, and how far the guards' scores exceed their thresholds `[rows]`: as
    `EmbeddingBank.apply` for rows that all carry `guards`, differentiable."""
    carried = {guard.name: guard for guard in guards}
    excess = torch.zeros(text.rows, device=next(iter(text.states.values())).device)
    for stack in bank.stacks:
        columns = [carried.get(name) for name in stack.names]
        if not any(columns):
            continue
        limits, strength, acts = (
            torch.tensor(row, device=excess.device).expand(text.rows, -1)
            for row in (
                [guard.threshold if guard else torch.inf for guard in columns],
                [guard.strength if guard else 1.0 for guard in columns],
                [guard is not None and guard.acts for guard in columns],
            )
        )
        gradient = gradients[next(guard.name for guard in columns if guard)]
        over = stack.sense(text) - limits
        over = over.detach() if gradient == "none" else over
        excess = excess + over.clamp(min=0).sum(1)
        due = (over.detach() > 0) & acts
        if bool(due.any()):
            text = _acted(stack, text, due, limits, strength, gradient)
    return text, excess


def _acted(
    stack: EmbeddingGuards,
    text: Conditioning,
    due: Tensor,
    limits: Tensor,
    strength: Tensor,
    gradient: Gradient,
) -> Conditioning:
    rows = due.any(1).nonzero()[:, 0]
    part, due, limits, strength = text.select(rows), due[rows], limits[rows], strength[rows]
    if gradient == "exact" and hasattr(stack, "act_differentiably"):
        exact = cast(Differentiable, stack).act_differentiably(part, due, limits, strength)
        moved = dict(exact.states)
    else:
        fixed = part.with_states({name: state.detach() for name, state in part.states.items()})
        refined = stack.act(fixed, due, limits, strength).text
        moved = {k: v + (refined.states[k] - fixed.states[k]) for k, v in part.states.items()}
    whole = {k: text.states[k].index_copy(0, rows, v.to(text.states[k])) for k, v in moved.items()}
    return text.with_states(whole)


def limits_of(names: Sequence[str], guards: Mapping[str, RowGuard]) -> dict[int, float]:
    """The thresholds of those `guards` that are among `names`, by their column there."""
    return {i: guards[name].threshold for i, name in enumerate(names) if name in guards}


def over_limits(score: Tensor, limits: Mapping[int, float]) -> Tensor:
    """`[rows]`: how far scores `[rows, limits]` of guards exceed their thresholds."""
    return (score - torch.tensor([*limits.values()]).to(score)).clamp(min=0).sum(1)


class GuardedLoss:
    """`denoising_loss` through the guards of a plan, plus `evade` times their excess scores.

    Guards of the prompt and overlays of the denoiser act in it; guards of the guidance cannot,
    since the loss has no guidance. Guards of latents read the estimate of each view, where it is no
    noisier than the estimates that they inspect. Hooks the denoiser until `close`.

    Raises DataError for guards that overlay a text encoder: the loss starts behind the encoders.
    """

    def __init__(self, family: Family, plans: ImagePlans, plan: ImagePlan, *, evade: float) -> None:
        self._family, self._evade, self._predict = family, evade, bare(family)
        stacks = plans.stacks
        self._bank, self._guards = stacks.prompts, plan.prompt_rows()
        for component in stacks.components:
            overlays = stacks.overlays_of(component)
            if names := [row.name for row in self._guards if row.acts and row.name in overlays]:
                raise DataError(
                    f"guard {names[0]} overlays {component}, which this attack cannot differentiate"
                    " yet: leave its method out of the attacked ones"
                )
        self._gradients = gradients_of(plan)
        self._overlays = OverlaySeam(family.denoiser)
        overlays = stacks.overlays_of("")
        self._overlaying = [row for row in self._guards if row.acts and row.name in overlays]
        if self._overlaying:
            self._overlays.install(overlays)
        carried = {row.name: row for row in plan.rows()}
        self._latents = [(stack, limits_of(stack.names, carried)) for stack in stacks.latents]
        self._output = [(stack, limits_of(stack.names, carried)) for stack in stacks.output.stacks]

    def __call__(self, views: Views, text: Conditioning) -> Tensor:
        overlaying = self._fired(text)
        text, excess = through_guards(self._bank, self._guards, text, self._gradients)
        rows = torch.arange(text.rows, device=views.inputs.device)
        if self._overlaying:
            self._overlays.carry(overlaying, rows)
            self._overlays.enter(rows)
        try:
            predicted = self._predict(views.inputs, views.timesteps, text)
        finally:
            self._overlays.leave()
        estimate = self._family.unpacked(views.estimate(predicted))
        excess = excess + self._late(estimate, views.level)
        return (predicted - views.truth).square().mean() + self._evade * excess.mean()

    def close(self) -> None:
        """Remove the hooks."""
        self._overlays.remove()

    @torch.no_grad()
    def _fired(self, text: Conditioning) -> list[list[RowGuard]]:
        """The guards whose overlays each row is generated with."""
        if not self._overlaying:
            return [[] for _ in range(text.rows)]
        applied = self._bank.apply(text, [self._overlaying] * text.rows)
        names = self._overlays.names
        return [acting(self._overlaying, readings, names) for readings in applied.readings]

    def _late(self, estimate: Tensor, level: Tensor) -> Tensor:
        total = torch.zeros(len(estimate), device=estimate.device)
        for latents, limits in self._latents:
            for column, limit in limits.items():
                score, _ = latents.sense(estimate, [column])
                inspected = level <= latents.inspections[column].level
                total = total + inspected * over_limits(score, {column: limit})
        for output, limits in self._output:
            if limits:
                total = total + over_limits(output.sense(estimate, [*limits]), limits)
        return total
