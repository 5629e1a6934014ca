"""Embedding-space classifier refinement: CGCE (arXiv 2511.05865).

Sense: light classifiers on each text encoder's token states (`classifiers/heads.py`). Decide:
p(concept) over the threshold. Act: gradient descent on the states, on no weight,

    E ← E - η |E| ∇L / |∇L|,   L = Σ_c softplus(logit_c) over the concepts that fired,

until every member of every firing ensemble says less than the target, or the steps are used up.

A classifier can be led astray: p falls and the picture stays. Two remedies act here, two more in
training: `pull` moves the states, at each step, a share of the way to the nearest safe prompt's
(a trust region around what is known to be safe), and `share` leaves alone the tokens whose gradient
is less than that share of the largest, which keeps what else the prompt asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from classifiers.heads import PARTS, Heads, stacked
from classifiers.onnx import Detector
from steering.conditioning import Conditioning
from steering.methods.embedding import EmbeddingGuard, numbers
from steering.prompted import Acted


@dataclass(frozen=True, eq=False)
class CgceStream:
    """All guards' heads on one stream: head i belongs to guard `owner[i]`.

    `anchors [guards, n, tokens, width]` are states of safe prompts, `known [guards, n]` says which
    are there.
    """

    heads: Heads
    owner: Tensor
    anchors: Tensor
    known: Tensor
    detector: Detector | None


@dataclass(frozen=True, eq=False)
class Descent:
    """How each guard descends, `[guards]` each: see the module's docstring for the letters.

    `rate` is η, `target` the p at which a row is done, `steps` the most that it may take.
    """

    rate: Tensor
    target: Tensor
    steps: Tensor
    pull: Tensor
    share: Tensor


class CgceScreen:
    """All CGCE guards of one model, stacked."""

    def __init__(
        self, names: Sequence[str], streams: Mapping[str, CgceStream], descent: Descent
    ) -> None:
        self.names: Sequence[str] = tuple(names)
        self._streams = dict(streams)
        self._descent = descent

    def sense(self, text: Conditioning) -> Tensor:
        """p(concept) `[rows, guards]`: the largest of a guard's members and streams."""
        said = []
        for name, stream in self._streams.items():
            states = text.states[name].float()
            if stream.detector is None:
                probabilities = stream.heads(states).sigmoid()
            else:
                probabilities = torch.from_numpy(stream.detector(states.numpy()))
            said.append(self._worst(probabilities, stream.owner))
        return torch.stack(said).amax(0).masked_fill(~text.finite()[:, None], torch.nan)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def act(self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor) -> Acted:
        """Refine the rows with any `due` guard; see `Screen.act`.

        `Acted.score` is what all guards of the screen say behind the last step.
        """
        rows = due.any(1).nonzero()[:, 0]
        before = {name: text.states[name][rows].clone().float() for name in self._streams}
        after, steps = self.descend(before, due[rows].clone(), strength[rows].clone())
        changed = {}
        for name, states in after.items():
            whole = text.states[name].clone()
            whole[rows] = states.to(whole.dtype)
            changed[name] = whole
        counts = torch.zeros(text.rows, dtype=torch.long, device=due.device)
        counts[rows] = steps
        refined = text.with_states(changed)
        return Acted(refined, counts, self.sense(refined))

    def descend(
        self, states: Mapping[str, Tensor], due: Tensor, strength: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Refined states of each stream and the steps of each row `[rows]`.

        Every row has a `due [rows, guards]` guard; it descends by the settings of the one that says
        most, and is done when all of them are under their targets.
        """
        moved = {name: stream.detach() for name, stream in states.items()}
        size = {name: stream.flatten(1).norm(dim=1) for name, stream in states.items()}
        steps = torch.zeros(len(due), dtype=torch.long, device=due.device)
        lead = self._score(moved).masked_fill(~due, -1.0).argmax(1)
        how = {name: getattr(self._descent, name)[lead] for name in ("steps", "pull", "share")}
        eta = (self._descent.rate[lead] * strength.gather(1, lead[:, None])[:, 0])[:, None, None]
        for _ in range(int(how["steps"].max())):
            inputs = {name: stream.detach().requires_grad_() for name, stream in moved.items()}
            logits = {name: self._streams[name].heads(stream) for name, stream in inputs.items()}
            over = self._over(logits) & due
            live = over.any(1) & (steps < how["steps"])
            if not bool(live.any()):
                break
            loss = torch.zeros((), device=due.device)
            for name, values in logits.items():
                loss = loss + (F.softplus(values) * over[:, self._streams[name].owner]).sum()
            slopes = torch.autograd.grad(loss, list(inputs.values()))
            for (name, stream), slope in zip(inputs.items(), slopes, strict=True):
                reach = slope.norm(dim=2)
                kept = reach >= how["share"][:, None] * reach.amax(1, keepdim=True)
                slope = slope * kept[..., None]
                norm = slope.flatten(1).norm(dim=1).clamp(min=1e-12)
                stepped = stream - eta * (size[name] / norm)[:, None, None] * slope
                weight = (how["pull"][:, None] * kept)[..., None]
                stepped = torch.lerp(stepped, self._nearest(name, stream, lead), weight)
                moved[name] = torch.where(live[:, None, None], stepped, stream).detach()
            steps = steps + live
        return moved, steps

    def _nearest(self, name: str, states: Tensor, lead: Tensor) -> Tensor:
        """For each row the leading guard's anchor that is nearest, `[rows, tokens, width]`."""
        stream = self._streams[name]
        if not stream.anchors.shape[1]:
            return states.detach()
        mine = stream.anchors[lead].flatten(2)
        gap = (mine - states.detach().flatten(1)[:, None]).norm(dim=2)
        at = gap.masked_fill(~stream.known[lead], torch.inf).argmin(1)
        return stream.anchors[lead, at]

    def _over(self, logits: Mapping[str, Tensor]) -> Tensor:
        said = [
            self._worst(value.detach().sigmoid(), self._streams[name].owner)
            for name, value in logits.items()
        ]
        return torch.stack(said).amax(0) > self._descent.target

    def _score(self, states: Mapping[str, Tensor]) -> Tensor:
        said = [
            self._worst(self._streams[name].heads(stream).sigmoid(), self._streams[name].owner)
            for name, stream in states.items()
        ]
        return torch.stack(said).amax(0).detach()

    def _worst(self, probabilities: Tensor, owner: Tensor) -> Tensor:
        """The largest p of each guard's members; 0 for a guard without heads on the stream."""
        blank = probabilities.new_zeros(len(probabilities), len(self.names))
        index = owner.expand(len(probabilities), -1)
        return blank.scatter_reduce(1, index, probabilities, "amax")


def stack(guards: Sequence[EmbeddingGuard], device: torch.device | str = "cpu") -> CgceScreen:
    """From artifacts, as `guard fit cgce` writes them. Raises ValueError naming a fault."""
    names = dict.fromkeys(stream for guard in guards for stream in guard.streams)
    streams = {name: _stream(guards, name, torch.device(device)) for name in names}
    settings: dict[str, Any] = {
        key: numbers(guards, key, device) for key in ("rate", "target", "steps", "pull", "share")
    }
    settings["steps"] = settings["steps"].long()
    return CgceScreen([guard.name for guard in guards], streams, Descent(**settings))


def _stream(guards: Sequence[EmbeddingGuard], name: str, device: torch.device) -> CgceStream:
    there = [(i, guard) for i, guard in enumerate(guards) if name in guard.streams]
    heads = [_heads(guard, name) for _, guard in there]
    owner = [i for (i, _), own in zip(there, heads, strict=True) for _ in range(len(own))]
    own = {i: guard.tensor("anchors", name, 3) for i, guard in there}
    most = max(len(anchors) for anchors in own.values())
    tokens, width = next(iter(own.values())).shape[1:]
    anchors = torch.zeros(len(guards), most, tokens, width)
    known = torch.zeros(len(guards), most, dtype=torch.bool)
    for i, each in own.items():
        if each.shape[1:] != (tokens, width):
            raise ValueError(f"the guards' anchors.{name} are of different shapes")
        anchors[i, : len(each)], known[i, : len(each)] = each, True
    both = stacked(heads)
    return CgceStream(
        heads=both.to(device),
        owner=torch.tensor(owner, device=device),
        anchors=anchors.to(device),
        known=known.to(device),
        detector=Detector(both) if device.type == "cpu" else None,
    )


def _heads(guard: EmbeddingGuard, stream: str) -> Heads:
    dims = {"queries": 3, "hidden": 3, "hidden_bias": 2, "out": 2, "out_bias": 1}
    try:
        return Heads(**{part: guard.tensor(part, stream, dims[part]) for part in PARTS})
    except ValueError as error:
        raise ValueError(f"guard {guard.name}: {error}") from error
