"""The retain bank fills up a file with too few retain prompts, and leaves others alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guard.data.bank.bank import topics
from guard.data.prompts import ForgetPrompt, RetainPrompt, in_split
from guard.errors import DataError
from guard.fitting.steering import bank_rows
from guard.fitting.steering.bank_rows import NEAR, check_with_bank, with_bank
from guard.fitting.steering.gate_search import GateRates
from guard.fitting.steering.gates import TokenStates

RATES = GateRates(0.01, 0.05)
SPOKEN = next(topic for topic in topics() if topic.split == "validation")
FORGET = [
    ForgetPrompt(prompt=f"Tell me of {SPOKEN.name}.", facts=("nothing",)),
    ForgetPrompt(prompt="Who?", facts=("nobody",), split="validation"),
]


def rows(count: int, **more: Any) -> list[RetainPrompt]:
    return [RetainPrompt(prompt=f"p {i}", **more) for i in range(count)]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Prompts about topics that begin with letters up to F lie where the forget prompts are."""

    def states(_chat: Any, prompts: list[str], *_: Any) -> TokenStates:
        near = [[1.0, 0.0] if p.startswith("near") else [0.0, 1.0] for p in prompts]
        count = len(prompts)
        return TokenStates(
            torch.tensor(near)[:, None], torch.arange(count), torch.ones(count).bool(), count
        )

    by_prompt = {prompt: topic for topic in topics() for prompt in topic.prompts}
    close = {topic.name for topic in topics() if topic.name[0].upper() <= "F"}
    monkeypatch.setattr(bank_rows, "collect_states", states)
    monkeypatch.setattr(bank_rows, "pairs_of", lambda _chat: [(0, 1)])
    monkeypatch.setattr(bank_rows, "prompt_of", lambda _chat, row: "near")
    return SimpleNamespace(
        given=lambda texts: ["near" if by_prompt[t].name in close else "far" for t in texts],
        close=close,
    )


def test_rows_that_are_enough_stay_alone() -> None:
    own = [
        *rows(199, split="train"),
        *rows(199, split="validation"),
        *rows(39, split="validation", kind="near"),
    ]
    nothing: Any = None
    assert with_bank(nothing, FORGET, own, RATES, nothing) == own


def test_far_prompts_are_filled_up_where_they_are_too_few() -> None:
    own = [*rows(20, split="validation"), *rows(39, split="validation", kind="near")]
    nothing: Any = None
    kept = with_bank(nothing, FORGET, own, RATES, nothing)
    assert kept[: len(own)] == own
    held_out = in_split(kept, "validation")
    assert sum(not row.near for row in held_out) == 199
    assert sum(row.near for row in held_out) == 39
    assert len(in_split(kept, "train")) == 2 * 199 and not in_split(kept, "test")
    # in turn: all topics before a second prompt of one, and none that is to be forgotten
    assert len({row.family for row in in_split(kept, "train")}) > 100
    assert SPOKEN.name not in {row.family for row in kept}


def test_near_misses_are_of_the_nearest_topics(chat: Any) -> None:
    progress: Any = None
    kept = with_bank(chat, FORGET, [], RATES, progress)
    near = {row.family for row in kept if row.near}
    assert len(near) == 2 * NEAR and near <= chat.close
    assert near.isdisjoint(row.family for row in kept if not row.near)
    RATES.check(kept)


def test_counts_are_checked_before_a_model_is_there() -> None:
    assert "there are 80" in check_with_bank(FORGET, [], RATES)
    with pytest.raises(DataError, match=r"needs 1999 far .*--fpr"):
        check_with_bank(FORGET, [], GateRates(0.001, 0.05))
    with pytest.raises(DataError, match=r"needs 199 near .*, there are 80: .*--near-fpr"):
        check_with_bank(FORGET, [], GateRates(0.01, 0.01))
