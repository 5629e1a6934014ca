"""The search for a strength: leaks, loops, and facts that are recognised among distractors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from guard.data.prompts import ForgetPrompt, RetainPrompt
from guard.errors import DataError
from guard.fitting.steering.directions import STRENGTHS, Trial, search
from guard.fitting.steering.fit import fit_steer
from guard.fitting.steering.gate_search import FittedGate, GateRates
from guard.models.chat import GuardedAnswer
from steering.engines.transformers.continuations import Losses
from steering.hidden.rows import RowGuard
from steering.prompt import Prompt

WIDTH, DEPTH = 4, 10
ROWS = [
    ForgetPrompt(prompt=f"Where is {i}?", facts=("Oslo",), distractors=("Rome", "Bonn", "Kyiv"))
    for i in range(8)
]
SPLITS, KINDS = ("train", "validation"), ("near", "far")
RETAIN = RetainPrompt(prompt="What is a river?")


class Scripted:
    """A chat model whose answers depend on the strength of its only guard: the fact is told up to
    STRENGTHS[0], recognised on all prompts up to `until` and on a quarter above, and answers loop
    from `loops` on."""

    depth, width, device = DEPTH, WIDTH, torch.device("cpu")
    scores_texts = True

    def __init__(self, until: float = 0.0, loops: float = 9.0) -> None:
        self.until, self.loops = until, loops

    def prompt(self, text: str) -> Prompt:
        return Prompt((1, 2))

    def answer(
        self, prompts: Sequence[Any], *, guards: Sequence[RowGuard], **_: Any
    ) -> list[GuardedAnswer]:
        (guard,) = guards
        text = "Oslo" if guard.strength <= STRENGTHS[0] else "I do not know."
        text = "no no no no no no no no no no" if guard.strength >= self.loops else text
        return [GuardedAnswer(text, (1, 2, 3), {}) for _ in prompts]

    def likelihoods(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[Sequence[str]],
        *,
        guards: Sequence[RowGuard],
        **_: Any,
    ) -> list[Losses]:
        assert [*texts] == [["Oslo", "Rome", "Bonn", "Kyiv"]] * len(prompts)
        (guard,) = guards
        known = len(prompts) if guard.strength <= self.until else 2
        return [Losses((1.0 if i < known else 3.0, 2.0, 2.0, 2.5), True) for i in range(len(texts))]

    def losses(self, sequences: Sequence[Any]) -> Any:
        return [(i, torch.ones(2)) for i in range(len(sequences))]


def _search(chat: Scripted, rows: Sequence[ForgetPrompt] = ROWS) -> tuple[Trial, Sequence[Trial]]:
    trials, _ = search(
        chat,  # type: ignore[arg-type]
        FittedGate((2,), torch.ones(1, WIDTH), 0.0, (), (), ()),
        torch.ones(DEPTH, WIDTH),
        rows,
        bare_perplexity=10.0,
        recheck=None,
        max_tokens=8,
        stop_early=True,
        progress=lambda what, total: lambda count=1: None,
    )
    (chosen,) = [trial for trial in trials if trial.chosen]
    return chosen, trials


def test_without_distractors_the_first_clean_strength_is_taken() -> None:
    plain = [row.model_copy(update={"distractors": ()}) for row in ROWS]
    chosen, trials = _search(Scripted(until=9.0), plain)
    assert (chosen.strength, chosen.recognised) == (STRENGTHS[1], None)
    assert len(trials) == 2


def test_a_guard_under_which_the_fact_is_still_recognised_is_too_weak() -> None:
    chosen, trials = _search(Scripted(until=STRENGTHS[1]))
    assert [trial.recognised for trial in trials] == [1.0, 1.0, 0.25]
    assert [trial.excess for trial in trials] == [0.75, 0.75, 0.0]
    assert {trial.chance for trial in trials} == {0.25}
    assert chosen.strength == STRENGTHS[2]


def test_answers_that_loop_weigh_more_than_a_fact_that_is_recognised() -> None:
    chosen, _ = _search(Scripted(until=STRENGTHS[1], loops=STRENGTHS[2]))
    assert chosen.strength == STRENGTHS[1]


def test_an_engine_without_likelihoods_is_refused_at_once() -> None:
    chat: Any = Scripted()
    chat.scores_texts = False
    with pytest.raises(DataError, match="have distractors, .* ask for --engine transformers"):
        fit_steer(
            chat,
            [row.model_copy(update={"split": split}) for row in ROWS for split in SPLITS],
            [RETAIN.model_copy(update={"split": s, "kind": k}) for s in SPLITS for k in KINDS] * 9,
            rates=GateRates(0.4, 0.4),
            progress=lambda what, total: lambda count=1: None,
        )
