"""How much a fit reads and generates: all of it, or a part of it for a draft."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split
from guard.fitting.steering.gate_search import GateRates

R = TypeVar("R", ForgetPrompt, RetainPrompt)


@dataclass(frozen=True)
class Effort:
    """`answer_tokens` of an answer; forget prompts whose answers are `contrasted`, and on which
    strengths are `searched`; retain prompts that are `answered`. A `draft` reads a part of the
    prompts, checks no generated tokens, and takes the first strength without a fault."""

    answer_tokens: int = 64
    contrasted: int = 64
    searched: int = 40
    answered: int = 400
    draft: bool = False


WHOLE = Effort()
DRAFT = Effort(answer_tokens=32, contrasted=24, searched=12, answered=40, draft=True)

_FORGET, _KNOWN, _RETAIN = 120, 40, 240
"""Prompts of a draft: to forget, in train and validation, and to retain, in train."""


def thinned(
    forget: Sequence[ForgetPrompt],
    retain: Sequence[RetainPrompt],
    rates: GateRates,
    rng: random.Random,
) -> tuple[list[ForgetPrompt], list[RetainPrompt]]:
    """The prompts that a draft reads. Of the retain prompts of the validation split these are as
    many as the rates need."""
    held_out = in_split(retain, "validation")
    kept = [
        *sample(in_split(retain, "train"), _RETAIN, rng),
        *sample([row for row in held_out if not row.near], rates.needed(near=False), rng),
        *sample([row for row in held_out if row.near], rates.needed(near=True), rng),
    ]
    about = [
        *sample(in_split(forget, "train"), _FORGET, rng),
        *sample(in_split(forget, "validation"), _KNOWN, rng),
    ]
    return about, kept


def sample(rows: Sequence[R], count: int, rng: random.Random) -> list[R]:
    """At most `count` of `rows`, in their order."""
    picked = sorted(rng.sample(range(len(rows)), min(count, len(rows))))
    return [rows[i] for i in picked]


def answered(
    rows: Sequence[RetainPrompt], rates: GateRates, effort: Effort, rng: random.Random
) -> list[RetainPrompt]:
    """The retain prompts that are answered, in their order. But for a draft there are as many of
    each kind as its rate needs, by which the threshold of generated tokens is found."""
    if effort.draft:
        return sample(rows, effort.answered, rng)
    order = rng.sample(range(len(rows)), len(rows))
    kept: list[int] = []
    for near in (False, True):
        kept += [i for i in order if rows[i].near == near][: rates.needed(near=near)]
    needed = {*kept}
    rest = [i for i in order if i not in needed]
    kept += rest[: max(effort.answered - len(kept), 0)]
    return [rows[i] for i in sorted(kept)]
