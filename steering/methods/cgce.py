"""Embedding-space classifier refinement: CGCE (arXiv 2511.05865), kept where real prompts differ.

Sense: light classifiers on each text encoder's token states (`head_score.py`). Decide: over the
threshold. Act: gradient descent on the states, on no weight,

    E ← E - η |E| ∇L / |∇L|,   L = Σ_c softplus(logit_c) over the concepts that fired,

until every member of every firing ensemble has a logit under the target, or the steps are used up.

Gradient descent can fool a classifier: its logit falls, and the image stays the same. Training uses
noise and attacks against that; the descent has three remedies, each a setting:

- `confine`: `∇L ← P ∇L`, P the projection onto the few directions in which unsafe prompts and
  their safe partners differ. No other direction is used, and the rest of the prompt is kept.
- `pull`: a trust region. Each step also goes this share of the way to the nearest safe token's
  coordinates in those directions (nearest in all others, as in `steering/methods/nearest.py`); the
  share fades from step to step.
- `share`: tokens whose gradient is less than that share of the largest stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.methods.fitted import FittedGuard, by_stream, numbers
from steering.methods.head_score import HeadScore, StreamHeads, stream_heads
from steering.methods.nearest import NearestStream, anchored, goals
from steering.methods.subspaces import dual

_FADE = 0.8
"""The share of the pull that remains from one step to the next. Without the fading, a row whose
safe tokens score above the target would oscillate between slope and pull."""
_OVERLAP = 0.1
"""Where two due guards' subspaces nearly coincide, a state moves by the mean of their changes."""


@dataclass(frozen=True, eq=False)
class Descent:
    """How each guard descends, `[guards]` each; see the module's docstring.

    `rate` is η, `target` the logit at which a row is done, `steps` the largest number of steps.
    """

    rate: Tensor
    target: Tensor
    steps: Tensor
    pull: Tensor
    share: Tensor
    confine: Tensor


@dataclass(frozen=True, eq=False)
class _Space:
    """The subspace of one stream of the rows, and the safe goal: `x + (goal - x bᵀ) d`.

    `basis`, `dual [rows, directions, width]`, `goal [rows, tokens, directions]`.
    """

    basis: Tensor
    dual: Tensor
    goal: Tensor


class CgceGuards:
    """All CGCE guards of one model, stacked."""

    def __init__(
        self,
        names: Sequence[str],
        streams: Mapping[str, StreamHeads],
        safe: Mapping[str, NearestStream],
        descent: Descent,
    ) -> None:
        """`safe` has each stream's subspaces and safe tokens."""
        self.names: Sequence[str] = tuple(names)
        self._streams, self._safe = dict(streams), dict(safe)
        self._score = HeadScore(streams)
        self._descent = descent

    def sense(self, text: Conditioning) -> Tensor:
        """The logit of p(concept) `[rows, guards]`, differentiable; NaN for a row not finite."""
        return self._score(text)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        """Refine the rows with any `due` guard; see `EmbeddingGuards.act`.

        `Refinement.score` has the scores of all guards on these rows after the last step, NaN
        elsewhere.
        """
        rows = due.any(1).nonzero()[:, 0]
        part = Conditioning(
            {name: text.states[name][rows].clone().float() for name in self._streams},
            {name: text.masks[name][rows] for name in self._streams},
        )
        after, steps = self.descend(part.states, due[rows].clone(), strength[rows].clone())
        changed = {}
        for name, states in after.items():
            whole = text.states[name].clone()
            whole[rows] = states.to(whole.dtype)
            changed[name] = whole
        counts = torch.zeros(text.rows, dtype=torch.long, device=due.device)
        counts[rows] = steps
        score = torch.full(due.shape, torch.nan, device=due.device)
        score[rows] = self.sense(part.with_states(after))
        return Refinement(text.with_states(changed), counts, score)

    def act_differentiably(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Conditioning:
        """As `act` on rows each of which has a `due` guard, with the graph of every step kept."""
        moved, _ = self.descend(dict(text.states), due, strength, differentiable=True)
        return text.with_states(moved)

    def descend(
        self,
        states: Mapping[str, Tensor],
        due: Tensor,
        strength: Tensor,
        *,
        differentiable: bool = False,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Refined states of each stream and the steps of each row `[rows]`.

        Every row has a `due [rows, guards]` guard; the row descends by the settings of the due
        guard with the largest logit, and is done when all due guards are under their targets.
        `differentiable` keeps the graph, for gradients of the result with respect to `states`.
        """
        heads = {name: stream.of_due(due) for name, stream in self._streams.items()}
        spaces = {name: self._space(name, states[name].detach(), due) for name in states}
        moved = dict(states) if differentiable else {k: v.detach() for k, v in states.items()}
        size = {name: x.detach().flatten(1).norm(dim=1) for name, x in states.items()}
        steps = torch.zeros(len(due), dtype=torch.long, device=due.device)
        lead, settings = self._lead(heads, moved, due)
        factor = strength.gather(1, lead[:, None])[:, 0]
        eta = settings["rate"] * factor
        settings["pull"] = (settings["pull"] * factor).clamp(max=1.0)
        for step in range(int(settings["steps"].max())):
            inputs = {k: v if differentiable else v.detach() for k, v in moved.items()}
            inputs = {k: v if v.requires_grad else v.requires_grad_() for k, v in inputs.items()}
            logits = {name: heads[name].heads(x) for name, x in inputs.items()}
            over = (self._worst(heads, logits) > self._descent.target) & due
            live = over.any(1) & (steps < settings["steps"])
            if not bool(live.any()):
                break
            loss = torch.zeros((), device=due.device)
            for name, values in logits.items():
                loss = loss + (F.softplus(values) * over[:, heads[name].owner]).sum()
            slopes = torch.autograd.grad(loss, list(inputs.values()), create_graph=differentiable)
            for (name, x), slope in zip(inputs.items(), slopes, strict=True):
                length = eta * size[name]
                pull = settings["pull"] * _FADE**step
                stepped = _step(x, slope, spaces[name], length, settings | {"pull": pull})
                stepped = torch.where(live[:, None, None], stepped, x)
                moved[name] = stepped if differentiable else stepped.detach()
            steps = steps + live
        return moved, steps

    def _space(self, name: str, states: Tensor, due: Tensor) -> _Space:
        bases, goal = goals(self._safe[name], states, due)
        flat = bases.flatten(1, 2)
        return _Space(flat, dual(flat, rtol=_OVERLAP), goal.flatten(2))

    def _lead(
        self, heads: Mapping[str, StreamHeads], states: Mapping[str, Tensor], due: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Each row's due guard with the largest logit, and its settings."""
        with torch.no_grad():
            logits = self._worst(heads, {name: heads[name].heads(x) for name, x in states.items()})
        lead = logits.masked_fill(~due, -torch.inf).argmax(1)
        names = ("rate", "steps", "pull", "share", "confine")
        return lead, {name: getattr(self._descent, name)[lead] for name in names}

    def _worst(self, heads: Mapping[str, StreamHeads], logits: Mapping[str, Tensor]) -> Tensor:
        worst = [heads[name].of_guards(v.detach(), "amax") for name, v in logits.items()]
        return torch.stack(worst).amax(0)


def _step(
    x: Tensor, slope: Tensor, space: _Space, length: Tensor, settings: Mapping[str, Tensor]
) -> Tensor:
    """One step of all rows, of `length [rows]` down the slope."""
    inside = slope @ space.basis.transpose(1, 2) @ space.dual
    slope = torch.where(settings["confine"][:, None, None], inside, slope)
    reach = slope.detach().norm(dim=2)
    kept = (reach >= settings["share"][:, None] * reach.amax(1, keepdim=True))[..., None]
    slope = slope.masked_fill(~kept, 0.0)
    norm = slope.flatten(1).norm(dim=1).clamp(min=1e-12)
    stepped = x - (length / norm)[:, None, None] * slope
    gap = (space.goal - stepped @ space.basis.transpose(1, 2)) @ space.dual
    pulled: Tensor = stepped + settings["pull"][:, None, None] * kept * gap
    return pulled


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> CgceGuards:
    """From artifacts, as `guard fit cgce` writes them. Raises ValueError naming a fault."""
    at = torch.device(device)
    bases, anchors = by_stream(guards, "basis", 2), by_stream(guards, "anchors", 2)
    safe = {name: anchored(basis, anchors[name], at) for name, basis in bases.items()}
    settings: dict[str, Any] = {
        key: numbers(guards, key, at) for key in ("rate", "target", "steps", "pull", "share")
    }
    settings["steps"] = settings["steps"].long()
    settings["confine"] = torch.tensor([guard.flag("confine") for guard in guards], device=at)
    names = [guard.name for guard in guards]
    return CgceGuards(names, stream_heads(guards, "streams", at), safe, Descent(**settings))
