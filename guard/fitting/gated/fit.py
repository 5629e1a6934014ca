"""Fitting guards that take a subspace out of the residual stream: directional ablation, and KIF.

Layers and strength are searched on prompts of the validation split on which the bare model leaks.
Needs torch and a loaded model. The test split is not used.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from guard.data.prompts import AskedRow, ForgetPrompt, RetainPrompt, in_split
from guard.errors import DataError
from guard.evaluation.fluency import perplexity
from guard.fitting.gated import subspaces
from guard.fitting.gated.subspaces import PromptStates
from guard.fitting.gated.token_gate import TokenGate
from guard.fitting.judgement import HeldOut
from guard.fitting.steering.asking import asked, prompt_of
from guard.fitting.steering.directions import Trial, answered_under, chosen
from guard.fitting.steering.effort import sample
from guard.fitting.steering.gate_search import GateRates, collect_states, share_over
from guard.fitting.steering.gates import POOL
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods.ablation import AblationGuard, AblationGuards
from steering.methods.kif import KifGuard, KifGuards
from steering.prompt import Prompt

FORGET, RETAIN = 64, 96
"""Prompts of the train split whose states are read, at most."""
SEARCHED, ANSWER_TOKENS = 24, 32
SENSE_DEPTHS = (0.25, 0.5)
"""Share of the decoder layers between which KIF senses."""
LAST_DEPTH = 0.85
"""Guards act up to there: behind it, the state is the next token's."""


@dataclass(frozen=True)
class Fit:
    """A guard with the figures it was chosen by; `held_out` are forget prompts of the validation
    split."""

    method: str
    guard: AblationGuard
    gate: TokenGate
    strength: float
    trials: tuple[Trial, ...]
    calibration: dict[str, Any]
    held_out: HeldOut


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
    guards = [_ablation(gate, layers, bases) for layers in (wide, half)]
    pairs = [(guard, strength) for guard in guards for strength in (1.0, 2.0)]
    return _searched("ablation", chat, forget, gate, pairs, rng, progress)


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
    guards = [
        _kif(_ablation(gate, layers, bases), gate, levels)
        for layers in (range(best, min(best + 3, chat.depth)), range(first, last))
    ]
    pairs = [(guard, strength) for guard in guards for strength in (0.8, 2.0)]
    fit = _searched("kif", chat, forget, gate, pairs, rng, progress)
    measured = {"cohens_d": [round(float(d), 3) for d in separation]}
    return replace(fit, calibration=fit.calibration | measured)


def bank_of(guard: AblationGuard, device: torch.device | str) -> HiddenBank:
    """A bank of this guard alone."""
    if isinstance(guard, KifGuard):
        return HiddenBank([KifGuards([guard], device)], device)
    return HiddenBank([AblationGuards([guard], device)], device)


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


def _ablation(gate: TokenGate, layers: range, bases: Tensor) -> AblationGuard:
    act = tuple(layers)
    return AblationGuard(
        "fitted", gate.sense_layers, gate.gates, act, bases[list(act)].contiguous(), gate.pool
    )


def _kif(guard: AblationGuard, gate: TokenGate, levels: Tensor) -> KifGuard:
    own = levels[list(guard.act_layers)].contiguous()
    return KifGuard(**vars(guard), levels=own, bias=gate.bias)


def _searched(
    method: str,
    chat: ChatModel,
    forget: Sequence[ForgetPrompt],
    gate: TokenGate,
    pairs: Sequence[tuple[AblationGuard, float]],
    rng: random.Random,
    progress: Stages,
) -> Fit:
    """The pair of a guard and a strength with the fewest faults, among fluent ones."""
    known = sample(in_split(forget, "validation"), 2 * SEARCHED, rng)
    answer = partial(chat.answer, max_tokens=ANSWER_TOKENS, progress=progress)
    bare = answer(asked(chat, known), what="bare answers, forget")
    leaked = [row for row, reply in zip(known, bare, strict=True) if row.leaks(reply.text)]
    leaked = leaked[:SEARCHED]
    if not leaked:
        raise DataError("the bare model leaks on no validation prompt: there is nothing to forget")
    bare_perplexity = perplexity(chat, [reply.tokens for reply in bare])
    trials = []
    for guard, strength in pairs:
        layers = f"{guard.act_layers[0]} to {guard.act_layers[-1]}"
        facts = answered_under(
            chat,
            bank_of(guard, chat.device),
            [RowGuard(guard.name, -math.inf, strength)],
            leaked,
            f"trial: layers {layers}, strength {strength}",
            ANSWER_TOKENS,
            progress,
        )
        trials.append(Trial(guard.act_layers, strength, tuple(facts.pop("leaked")), **facts))
    best = chosen(trials, bare_perplexity)
    trials[best] = replace(trials[best], chosen=True)
    held_out = gate.held_out(chat, forget, progress)
    calibration = gate.calibration | {
        "split": "validation",
        "forget_fired_on_prompt": held_out.fired("forget").value,
        "trial_prompts": len(leaked),
        "trial_leak_rate": trials[best].leak_rate,
        "bare_perplexity": bare_perplexity,
        "guarded_perplexity": trials[best].perplexity,
    }
    return Fit(method, pairs[best][0], gate, pairs[best][1], tuple(trials), calibration, held_out)
