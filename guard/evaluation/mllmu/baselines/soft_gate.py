"""The published gate: MLLMEraser (arXiv 2510.04217), without the threshold that our guards add.

At each layer `h' = h + λ W P h` with `P` the projection onto the null space of the retain states
and `W` the ridge solution of `W P H_f = d 1ᵀ`, which is the gate `w · h` times `d`
(`steering.methods.steer.hard_gate`). It acts on every prompt, by however much the gate says. The
states are those of the last prompt tokens, as in the released code, at the layers where the
policy's guards act; the directions and the strength are theirs. It acts at the last prompt token
and at every generated one: the engine leaves earlier tokens of a prompt alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from guard.evaluation.mllmu.contestants import Contestant
from guard.models.chat import TransformersChat
from guard.reporting.progress import Stages
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods.steer import (
    SteerGuard,
    SteerGuards,
    gram,
    hard_gate,
    null_space,
)
from steering.prompt import Prompt

NAME = "soft gate"
NULL_SHARE = 0.6
"""Of AlphaSteer's 0.3 to 0.6."""
RIDGE = 10.0
"""AlphaSteer's regulariser."""
STEPS = 64
"""Tokens on which it acts: more than any answer has."""


class SoftGates(SteerGuards):
    """One guard whose change is scaled by a gate at the acting layer; `gates [width]` by layer."""

    def __init__(
        self, guard: SteerGuard, gates: Mapping[int, Tensor], device: torch.device
    ) -> None:
        super().__init__([guard], device)
        self._layer_gates = {layer: gate.to(device) for layer, gate in gates.items()}

    def act(
        self, layer: int, states: Tensor, guard: Tensor, age: Tensor, strength: Tensor
    ) -> Tensor:
        """See `HiddenGuards.act`."""
        change = super().act(layer, states, guard, age, strength)
        if layer not in self._layer_gates:
            return change
        return change * (states @ self._layer_gates[layer])[..., None]


def soft_gate(
    chat: TransformersChat,
    directions: Mapping[int, Tensor],
    strength: float,
    forget: Sequence[Prompt],
    retain: Sequence[Prompt],
    progress: Stages,
) -> Contestant:
    """Fit the gates on the states of these prompts and add `directions` (by layer, `[width]`)."""
    layers = sorted(directions)
    gone = _last_states(chat, forget, layers, "soft gate: forget states", progress)
    kept = _last_states(chat, retain, layers, "soft gate: retain states", progress)
    gates = {
        layer: hard_gate(gone[:, i], null_space(gram(kept[:, i]), NULL_SHARE), RIDGE).float()
        for i, layer in enumerate(layers)
    }
    width = chat.width
    guard = SteerGuard(
        name=NAME,
        sense_layers=(0,),
        # nothing is sensed: it always acts
        gates=torch.zeros(1, width),
        act_layers=tuple(layers),
        directions=torch.stack([directions[layer].float() for layer in layers])
        .expand(STEPS, -1, -1)
        .contiguous(),
    )
    bank = HiddenBank([SoftGates(guard, gates, chat.device)], chat.device)
    return Contestant(
        NAME,
        chat,
        bank,
        [RowGuard(NAME, -torch.inf, strength)],
        notes={"null_share": NULL_SHARE, "ridge": RIDGE, "layers": layers},
    )


def _last_states(
    chat: TransformersChat,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    stage: str,
    progress: Stages,
) -> Tensor:
    """`[prompts, layers, width]`: the residual stream at the last tokens."""
    states = torch.zeros(len(prompts), len(layers), chat.width)
    for i, tokens in chat.states(prompts, layers, progress(stage, len(prompts))):
        states[i] = tokens[-1]
    return states
