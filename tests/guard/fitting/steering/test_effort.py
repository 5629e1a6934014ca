"""A draft reads a part of the prompts, of every kind as many as the rates need."""

from __future__ import annotations

import random
from typing import Any

from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split
from guard.fitting.steering.effort import DRAFT, answered, thinned
from guard.fitting.steering.gate_search import GateRates

RATES = GateRates(0.1, 0.2)


def retain(count: int, **more: Any) -> list[RetainPrompt]:
    return [RetainPrompt(prompt=f"p {i}", **more) for i in range(count)]


def test_a_draft_keeps_what_the_rates_need() -> None:
    forget = [
        ForgetPrompt(prompt=f"p {i}", facts=("f",), split=split)
        for split in ("train", "validation", "test")
        for i in range(200)
    ]
    kept = [
        *retain(500),
        *retain(100, split="validation"),
        *retain(50, split="validation", kind="near"),
    ]
    about, others = thinned(forget, kept, RATES, random.Random(0))
    assert len(in_split(about, "train")) == 120 and len(in_split(about, "validation")) == 40
    assert len(in_split(others, "train")) == 240
    held_out = in_split(others, "validation")
    assert sum(row.near for row in held_out) == RATES.needed(near=True) == 9
    assert sum(not row.near for row in held_out) == RATES.needed(near=False) == 19
    assert RATES.check(others)


def test_a_draft_answers_few_retain_prompts() -> None:
    rows = retain(300, split="validation")
    assert len(answered(rows, RATES, DRAFT, random.Random(0))) == DRAFT.answered
