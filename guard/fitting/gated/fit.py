"""Fitting guards that take a subspace out of the residual stream: directional ablation, and KIF.

Layers and strength are searched on prompts of the validation split on which the bare model leaks.
Needs torch and a loaded model. The test split is not used.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from guard.data.prompts import AskedRow, ForgetPrompt, RetainPrompt, in_split
from guard.errors import DataError
from guard.fitting.gated import subspaces
from guard.fitting.gated.search import Candidate, Fit, searched
from guard.fitting.gated.subspaces import PromptStates
from guard.fitting.gated.token_gate import TokenGate
from guard.fitting.steering.asking import prompt_of
from guard.fitting.steering.effort import sample
from guard.fitting.steering.gate_search import GateRates, collect_states, share_over
from guard.fitting.steering.gates import POOL
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.methods.kif import KifGuard
from steering.prompt import Prompt

FORGET, RETAIN = 64, 96
"""Prompts of the train split whose states are read, at most."""
SENSE_DEPTHS = (0.25, 0.5)
"""Share of the decoder layers between which KIF senses."""
LAST_DEPTH = 0.85
"""Guards act up to there: behind it, the state is the next token's."""


def fit_ablation(
    chat: ChatModel,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    gate: TokenGate,
    *,
    rank: int = 1,
    seed: int = 0,
    progress: Stages,
) -> Fit:
    """Directional ablation: at each layer the direction from the last tokens of other prompts to
    those of the subject's. Raises DataError as `fit_kif`."""
    rng = random.Random(seed)
    about, others, _ = _read(chat, forget, retain, rng, progress)
    bases = subspaces.spanned(about.last, others.last, rank)
    first, last = max(gate.sense_layers), round(LAST_DEPTH * chat.depth)
    wide, half = range(first, last), range((first + last) // 2, last)
    guards = [
        _candidate(layers, strength, bases) for layers in (wide, half) for strength in (1.0, 2.0)
    ]
    return searched("ablation", chat, forget, gate, guards, rng, progress)


def fit_kif(
    chat: ChatModel,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    gate: TokenGate | None,
    rates: GateRates,
    *,
    rank: int = 1,
    seed: int = 0,
    progress: Stages,
) -> Fit:
    """KIF's capsules. Without a `gate` the signature itself is the gate: its score in standard
    deviations of those of retain prompts, at the layer between SENSE_DEPTHS where prompts of the
    subject are farthest from others by Cohen's d.

    Raises DataError where a split has too few prompts, or where the bare model leaks on none.
    """
    if gate is None:
        rates.check(retain)
    rng = random.Random(seed)
    about, others, ordinary = _read(chat, forget, retain, rng, progress)
    separation = subspaces.separation(about.mean, others.mean, seed)
    if gate is None:
        first, end = (round(share * chat.depth) for share in SENSE_DEPTHS)
        end = max(end, first + 1)
        layer = first + int(separation[first:end].argmax())
        signature = subspaces.standardised(about.mean, others.mean)[layer]
        gate = _signature_gate(chat, layer, signature, forget, retain, rates, progress)
    bases = subspaces.spanned(about.mean, others.mean, rank)
    levels = subspaces.levels(chat, ordinary, bases, progress)
    first, last = max(gate.sense_layers), round(LAST_DEPTH * chat.depth)
    best = first + int(separation[first:last].argmax())
    curve = {"bias": gate.bias, "slope": KifGuard.slope, "middle": KifGuard.middle}
    guards = [
        _candidate(layers, strength, bases, curve, levels=levels)
        for layers in (range(best, min(best + 3, chat.depth)), range(first, last))
        for strength in (0.8, 2.0)
    ]
    fit = searched("kif", chat, forget, gate, guards, rng, progress)
    measured = {"cohens_d": [round(float(d), 3) for d in separation]}
    return replace(fit, calibration=fit.calibration | measured)


def _read(
    chat: ChatModel,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    rng: random.Random,
    progress: Stages,
) -> tuple[PromptStates, PromptStates, list[Prompt]]:
    """The states of prompts to forget and of those to retain, and the latter prompts."""
    about = sample(in_split(forget, "train"), FORGET, rng)
    others = sample(in_split(retain, "train"), RETAIN, rng)
    if len(about) < 2 or len(others) < 2:
        raise DataError("the train split needs two prompts to forget and two to retain, at least")
    rows: tuple[AskedRow, ...] = (*about, *others)
    prompts = [prompt_of(chat, row) for row in rows]
    states = subspaces.read(chat, prompts, "reading prompts", progress)
    count = len(about)
    return (
        PromptStates(states.mean[:count], states.last[:count]),
        PromptStates(states.mean[count:], states.last[count:]),
        prompts[count:],
    )


def _signature_gate(
    chat: ChatModel,
    layer: int,
    signature: Tensor,
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    rates: GateRates,
    progress: Stages,
) -> TokenGate:
    """The score of a signature in standard deviations of those of the retain prompts of the
    validation split, which give the threshold."""
    held_out, known = in_split(retain, "validation"), in_split(forget, "validation")
    rows: tuple[AskedRow, ...] = (*held_out, *known)
    prompts = [prompt_of(chat, row) for row in rows]
    states = collect_states(chat, prompts, [layer], "scoring prompts", progress)
    scores = states.pooled(states.score([0], signature[None]), POOL)
    others = scores[: len(held_out)]
    mean, deviation = float(others.mean()), float(others.std().clamp(min=1e-6))
    z = ((scores - mean) / deviation).tolist()
    near = [row.near for row in held_out]
    threshold = rates.threshold(z[: len(held_out)], near)
    of_kind = {
        kind: [s for s, n in zip(z, near, strict=False) if n == is_near]
        for kind, is_near in (("far", False), ("near", True))
    }
    return TokenGate(
        (layer,),
        signature[None] / deviation,
        threshold,
        POOL,
        bias=-mean / deviation,
        calibration={
            "false_positive_rate": rates.far,
            "near_false_positive_rate": rates.near,
            "forget_fired_on_prompt": share_over(z[len(held_out) :], threshold),
            **{f"{k}_fired_on_prompt": share_over(v, threshold) for k, v in of_kind.items()},
        },
    )


def _candidate(
    layers: range,
    strength: float,
    bases: Tensor,
    settings: Mapping[str, float] | None = None,
    **more: Tensor,
) -> Candidate:
    """A guard that acts at `layers`; tensors have a leading dimension of all layers."""
    act = list(layers)
    tensors = {name: t[act].contiguous() for name, t in {"directions": bases, **more}.items()}
    label = f"layers {act[0]} to {act[-1]}"
    return Candidate(label, strength, {"act_layers": act, **(settings or {})}, tensors)
