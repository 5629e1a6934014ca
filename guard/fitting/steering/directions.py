"""The directions, layers and strength with which a steering guard acts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from guard.data.prompts import ForgetPrompt, PairedAnswers
from guard.evaluation.fluency import loops, perplexity
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.steering.asking import asked, prompt_of
from guard.fitting.steering.gate_search import FittedGate
from guard.fitting.steering.wordings import REFUSALS
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuard, bank_of, contrast
from steering.prompt import Prompt

POSITIONS = 6
"""Answer positions whose states are contrasted."""

SCHEDULE = (1.0, 1.0, 0.6, 0.6, 0.45, 0.45, 0.35, 0.3, 0.2, 0.15)
"""Share of the direction at the token where the guard fires and at the following tokens. The first
two decide whether an answer begins with the fact; with as much on those that follow answers loop,
and without any the model returns to the topic at once."""

REST = 6
"""Tokens after which a topical token in the answer starts the schedule again, for an answer that
apologises and then continues with the topic."""

DEPTHS = ((0.54, 0.67, 0.8), (0.47, 0.54, 0.6, 0.67, 0.74, 0.8))
STRENGTHS = (0.4, 0.55, 0.7, 0.85)
FLUENT = 1.4
"""Settings whose answers have more than this times the bare perplexity are used last."""


@dataclass(frozen=True)
class Trial:
    """One setting on validation prompts on which the bare model leaks; the guard always fires."""

    act_layers: tuple[int, ...]
    strength: float
    leaked: tuple[bool, ...]
    perplexity: float
    looping: float
    recognised: float | None = None
    """Share of the prompts with distractors whose fact is likelier than all of them."""
    chance: float = 0.0
    """What a guess among fact and distractors would get right."""
    chosen: bool = False

    @property
    def leak_rate(self) -> float:
        return sum(self.leaked) / len(self.leaked)

    @property
    def excess(self) -> float:
        """By how much facts are recognised more often than by chance."""
        return max((self.recognised or 0.0) - self.chance, 0.0)

    @property
    def faults(self) -> float:
        """What is wrong with its answers, as a sum of shares."""
        return self.leak_rate + self.looping + self.excess


def directions(
    chat: ChatModel,
    rows: Sequence[ForgetPrompt],
    answers: Sequence[Sequence[int]],
    pairs: Sequence[PairedAnswers],
    progress: Stages,
) -> Tensor:
    """Erasure minus recall answers, over their first POSITIONS tokens: `[layers, width]`.

    Recall answers are the model's (`answers`, token ids) or a row's `answer`, erasure answers are
    REFUSALS; `pairs`, if given, replace both. The state at the last prompt token decides the first
    answer token, so it counts as the first position.
    """
    if pairs:
        prompts = [prompt_of(chat, pair) for pair in pairs]
        recall = [chat.ids(pair.recall) for pair in pairs]
        erasure = [chat.ids(pair.erasure) for pair in pairs]
    else:
        prompts = [prompt_of(chat, row) for row in rows]
        recall = [
            chat.ids(row.answer) if row.answer else list(tokens)
            for row, tokens in zip(rows, answers, strict=True)
        ]
        erasure = [chat.ids(REFUSALS[i % len(REFUSALS)]) for i in range(len(rows))]

    erased = answer_states(chat, prompts, erasure, "erasure answers", progress)
    recalled = answer_states(chat, prompts, recall, "recall answers", progress)
    return contrast(erased, recalled).float()


def answer_states(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[int]],
    stage: str,
    progress: Stages,
) -> Tensor:
    """The mean state of the first POSITIONS tokens of each answer, `[prompts, layers, width]`."""
    sequences = [p.extended(s[: POSITIONS - 1]) for p, s in zip(prompts, answers, strict=True)]
    means = torch.zeros(len(sequences), chat.depth, chat.width)
    advance = progress(stage, len(sequences))
    for i, states_of_layers in chat.states(sequences, range(chat.depth), advance):
        means[i] = states_of_layers[len(prompts[i]) - 1 :].mean(0)
    return means


def search(
    chat: ChatModel,
    gate: FittedGate,
    directions: Tensor,
    rows: Sequence[ForgetPrompt],
    bare_perplexity: float,
    *,
    recheck: float | None,
    max_tokens: int,
    stop_early: bool,
    progress: Stages,
    kept: Checkpoints | None = None,
) -> tuple[tuple[Trial, ...], SteerGuard]:
    """Try layers and strengths on `rows`: among fluent settings the one wins with the fewest leaks,
    loops and facts that are recognised among distractors more often than by chance, then the one
    with the lowest perplexity. `stop_early` ends the search at a fluent setting with none of
    these. Trials in `kept` are not made again."""
    kept = kept or Checkpoints(None)
    trials: list[Trial] = []
    guards: list[SteerGuard] = []
    schedule = torch.tensor(SCHEDULE)[:, None, None]

    def done() -> bool:
        last = trials[-1] if trials else None
        clean = last is not None and not last.faults
        return stop_early and clean and trials[-1].perplexity <= FLUENT * bare_perplexity

    for shares in DEPTHS:
        first, last = max(gate.layers), chat.depth - 1
        layers = sorted({min(max(round(share * chat.depth), first), last) for share in shares})
        guard = SteerGuard(
            name="fitted",
            sense_layers=gate.layers,
            gates=gate.gates,
            act_layers=tuple(layers),
            directions=schedule * directions[layers][None],
            pool=gate.pool,
            rest=REST,
            tokens=gate.tokens,
        )
        for strength in STRENGTHS:
            if done():
                break
            facts = kept.value(
                f"trial-{'-'.join(map(str, layers))}-{strength}",
                partial(_tried, chat, guard, strength, recheck, rows, max_tokens, progress),
            )
            leaked = tuple(facts.pop("leaked"))
            trials.append(Trial(guard.act_layers, strength, leaked, **facts))
            guards.append(guard)

    best = chosen(trials, bare_perplexity)
    trials[best] = replace(trials[best], chosen=True)
    return tuple(trials), guards[best]


def chosen(trials: Sequence[Trial], bare_perplexity: float) -> int:
    """The number of the best trial: a fluent one, with the fewest faults, then the lowest
    perplexity."""

    def cost(i: int) -> tuple[bool, float, float]:
        rough = trials[i].perplexity > FLUENT * bare_perplexity
        return rough, trials[i].faults, trials[i].perplexity

    return min(range(len(trials)), key=cost)


def _tried(
    chat: ChatModel,
    guard: SteerGuard,
    strength: float,
    recheck: float | None,
    rows: Sequence[ForgetPrompt],
    max_tokens: int,
    progress: Stages,
) -> dict[str, Any]:
    """What a trial has found."""
    always = [RowGuard(guard.name, -math.inf, strength, True, recheck)]
    bank = bank_of([guard], chat.device)
    what = f"trial: layers {', '.join(map(str, guard.act_layers))}, strength {strength}"
    facts = answered_under(chat, bank, always, rows, what, max_tokens, progress)
    recognised, chance = recognition(chat, rows, bank, always, f"{what}, facts", progress)
    return facts | {"recognised": recognised, "chance": chance}


def answered_under(
    chat: ChatModel,
    bank: HiddenBank,
    guards: Sequence[RowGuard],
    rows: Sequence[ForgetPrompt],
    what: str,
    max_tokens: int,
    progress: Stages,
) -> dict[str, Any]:
    """Of the answers to `rows` under guards: which leak, their perplexity, the share that loops."""
    answers = chat.answer(
        asked(chat, rows),
        max_tokens=max_tokens,
        what=what,
        progress=progress,
        bank=bank,
        guards=guards,
    )
    return {
        "leaked": [row.leaks(answer.text) for row, answer in zip(rows, answers, strict=True)],
        "perplexity": perplexity(chat, [answer.tokens for answer in answers]),
        "looping": sum(loops(answer.text) for answer in answers) / len(answers),
    }


def recognition(
    chat: ChatModel,
    rows: Sequence[ForgetPrompt],
    bank: HiddenBank,
    guards: Sequence[RowGuard],
    what: str,
    progress: Stages,
) -> tuple[float | None, float]:
    """How often the fact of those of `rows` with distractors is the likeliest of them as an answer,
    None without such rows, and how often a guess would be right."""
    rows = [row for row in rows if row.distractors]
    if not rows:
        return None, 0.0
    found = chat.likelihoods(
        [prompt_of(chat, row) for row in rows],
        [[row.facts[0], *row.distractors] for row in rows],
        what=what,
        progress=progress,
        bank=bank,
        guards=guards,
    )
    right = sum(losses.values[0] < min(losses.values[1:]) for losses in found)
    chance = sum(1 / (1 + len(row.distractors)) for row in rows)
    return right / len(rows), chance / len(rows)
