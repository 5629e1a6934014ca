"""The guards of a policy as a white-box attacker knows them: every step of theirs has a slope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from guard.evaluation.m_erasure.denoising import Views, bare
from guard.plans.images import ImagePlan, ImagePlans
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.seams.projections import ProjectionSeam
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import EmbeddingBank, EmbeddingGuards
from steering.methods.cgce import CgceGuards


def through_guards(
    bank: EmbeddingBank, guards: Sequence[RowGuard], text: Conditioning
) -> tuple[Conditioning, Tensor]:
    """What the guards of prompts leave of `text`, and what they say over their thresholds `[rows]`.

    The same as `EmbeddingBank.apply` makes of rows that all carry `guards`, differentiable: a
    refinement by gradient is followed step by step; any other action passes the slope on as it is
    (Athalye et al., arXiv 1802.00420).
    """
    carried = {guard.name: guard for guard in guards}
    seen = torch.zeros(text.rows, device=next(iter(text.states.values())).device)
    for screen in bank.screens:
        own = [carried.get(name) for name in screen.names]
        if not any(own):
            continue
        limits, strength, acts = (
            torch.tensor(row, device=seen.device).expand(text.rows, -1)
            for row in (
                [guard.threshold if guard else torch.inf for guard in own],
                [guard.strength if guard else 1.0 for guard in own],
                [guard is not None and guard.acts for guard in own],
            )
        )
        over = screen.sense(text) - limits
        seen = seen + over.clamp(min=0).sum(1)
        due = (over.detach() > 0) & acts
        if bool(due.any()):
            text = _acted(screen, text, due, limits, strength)
    return text, seen


def _acted(
    screen: EmbeddingGuards, text: Conditioning, due: Tensor, limits: Tensor, strength: Tensor
) -> Conditioning:
    rows = due.any(1).nonzero()[:, 0]
    part, due, limits, strength = text.select(rows), due[rows], limits[rows], strength[rows]
    if isinstance(screen, CgceGuards):
        moved, _ = screen.descend(dict(part.states), due, strength, differentiable=True)
    else:
        fixed = part.with_states({name: state.detach() for name, state in part.states.items()})
        exact = screen.act(fixed, due, limits, strength).text
        moved = {k: v + (exact.states[k] - fixed.states[k]) for k, v in part.states.items()}
    whole = {k: text.states[k].index_copy(0, rows, v.to(text.states[k])) for k, v in moved.items()}
    return text.with_states(whole)


def limits_of(names: Sequence[str], guards: Mapping[str, RowGuard]) -> dict[int, float]:
    """The thresholds of those `guards` that are among `names`, by their column there."""
    return {i: guards[name].threshold for i, name in enumerate(names) if name in guards}


def over_limits(score: Tensor, limits: Mapping[int, float]) -> Tensor:
    """`[rows]`: how far scores `[rows, limits]` of guards lie over their thresholds."""
    return (score - torch.tensor([*limits.values()]).to(score)).clamp(min=0).sum(1)


class GuardedLoss:
    """`denoising_loss` through the guards of a plan, and `evade` times what they say too much.

    Guards of the prompt and overlays are in it as they act; those that act on the guidance cannot
    be, since nothing is guided here. Guards of latents look at what each view is taken for, where
    it is no noisier than those that they look at. Hooks the denoiser until `close`.
    """

    def __init__(self, family: Family, plans: ImagePlans, plan: ImagePlan, *, evade: float) -> None:
        self._family, self._evade, self._predict = family, evade, bare(family)
        self._bank, self._guards = plans.bank, plan.prompt_rows()
        self._overlaying = [g for g in self._guards if g.acts and g.name in plans.overlays]
        self._projections = ProjectionSeam(family.denoiser, family.cross_attention())
        if self._overlaying:
            self._projections.install(plans.overlays)
        carried = {row.name: row for row in plan.rows()}
        self._erasers = [(e, limits_of(e.names, carried)) for e in plans.erasers]
        self._screens = [(s, limits_of(s.names, carried)) for s in plans.finished.screens]

    def __call__(self, views: Views, text: Conditioning) -> Tensor:
        carried = self._fired(text)
        text, seen = through_guards(self._bank, self._guards, text)
        rows = torch.arange(text.rows, device=views.inputs.device)
        if self._overlaying:
            self._projections.carry(carried, rows)
            self._projections.enter(rows)
        try:
            said = self._predict(views.inputs, views.timesteps, text)
        finally:
            self._projections.leave()
        seen = seen + self._late(self._family.unpacked(views.estimate(said)), views.level)
        return (said - views.truth).square().mean() + self._evade * seen.mean()

    def close(self) -> None:
        """Take the hooks off."""
        self._projections.remove()

    @torch.no_grad()
    def _fired(self, text: Conditioning) -> list[list[RowGuard]]:
        """The guards by whose overlays each row is drawn."""
        if not self._overlaying:
            return [[] for _ in range(text.rows)]
        applied = self._bank.apply(text, [self._overlaying] * text.rows)
        return [[g for g in self._overlaying if own[g.name].fired] for own in applied.readings]

    def _late(self, estimate: Tensor, level: Tensor) -> Tensor:
        total = torch.zeros(len(estimate), device=estimate.device)
        for eraser, limits in self._erasers:
            for column, limit in limits.items():
                score, _ = eraser.sense(estimate, [column])
                looked = level <= eraser.looks[column].level
                total = total + looked * over_limits(score, {column: limit})
        for screen, limits in self._screens:
            if limits:
                total = total + over_limits(screen.sense(estimate, [*limits]), limits)
        return total
