"""The choice among guards behind a prompt's gate, the same for every method: by answers to prompts
on which the bare model leaks.

Needs torch and a loaded model. The test split is not used.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from guard.data.prompts import ForgetPrompt, in_split
from guard.errors import DataError
from guard.evaluation.fluency import perplexity
from guard.fitting.gated.token_gate import TokenGate
from guard.fitting.judgement import HeldOut
from guard.fitting.steering.asking import asked
from guard.fitting.steering.directions import Trial, answered_under, chosen
from guard.fitting.steering.effort import sample
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods import method_named
from steering.methods.fitted import FittedGuard

SEARCHED, ANSWER_TOKENS = 24, 32
_NAME = "fitted"


@dataclass(frozen=True, eq=False)
class Candidate:
    """What an artifact would hold beside its gate: `settings` with `act_layers`, and `tensors`.
    `label` says in a few words where and on what it acts."""

    label: str
    strength: float
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Fit:
    """A guard with the figures it was chosen by: a trial for each of the `candidates`, in their
    order; `held_out` are forget prompts of the validation split."""

    method: str
    guard: Candidate
    gate: TokenGate
    candidates: tuple[Candidate, ...]
    trials: tuple[Trial, ...]
    calibration: dict[str, Any]
    held_out: HeldOut


def bank_of(
    method: str, guard: Candidate, gate: TokenGate, device: torch.device | str
) -> HiddenBank:
    """A bank of this guard alone."""
    tensors = {name: t.numpy() for name, t in {"gates": gate.gates, **guard.tensors}.items()}
    fitted = FittedGuard(_NAME, tensors, {**gate.settings, **guard.settings})
    return HiddenBank([method_named(method).stacked([fitted], device)], device)


def searched(
    method: str,
    chat: ChatModel,
    forget: Sequence[ForgetPrompt],
    gate: TokenGate,
    candidates: Sequence[Candidate],
    rng: random.Random,
    progress: Stages,
) -> Fit:
    """The candidate with the fewest faults, among fluent ones.

    Raises DataError where the bare model leaks on no prompt of the validation split.
    """
    known = sample(in_split(forget, "validation"), 2 * SEARCHED, rng)
    answer = partial(chat.answer, max_tokens=ANSWER_TOKENS, progress=progress)
    bare = answer(asked(chat, known), what="bare answers, forget")
    leaked = [row for row, reply in zip(known, bare, strict=True) if row.leaks(reply.text)]
    leaked = leaked[:SEARCHED]
    if not leaked:
        raise DataError("the bare model leaks on no validation prompt: there is nothing to forget")
    bare_perplexity = perplexity(chat, [reply.tokens for reply in bare])
    trials = []
    for guard in candidates:
        facts = answered_under(
            chat,
            bank_of(method, guard, gate, chat.device),
            [RowGuard(_NAME, -math.inf, guard.strength)],
            leaked,
            f"trial: {guard.label}, strength {guard.strength}",
            ANSWER_TOKENS,
            progress,
        )
        layers = tuple(guard.settings["act_layers"])
        trials.append(Trial(layers, guard.strength, tuple(facts.pop("leaked")), **facts))
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
    return Fit(
        method, candidates[best], gate, tuple(candidates), tuple(trials), calibration, held_out
    )
