"""Answers of two engines: which requests differ, and by how much."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.gpu.parts.comparison import Comparison, compare, reason
from tests.gpu.parts.decisions import decisions


def _answer(tokens: list[int], score: float | None = None, fired: bool = False) -> dict[str, Any]:
    guards = [
        {
            "guard": "firm",
            "score": score,
            "fired": fired,
            "action": "steer" if fired else "none",
            "position": 0 if fired else None,
        }
    ]
    outcome = "steered" if fired else "pass"
    verdict = {"outcome": outcome, "guards": [] if score is None else guards}
    return {"tokens": [tokens], "finish": "length", "guard": verdict}


REQUESTS = [{"policy": None}, {"policy": "firm"}, {"policy": "firm", "aborted": 3}]
EXPECTED = [_answer([1, 2]), _answer([3, 4], 2.0, fired=True), _answer([5])]


def test_the_same_answers_do_not_differ() -> None:
    assert compare(REQUESTS, EXPECTED, EXPECTED) == Comparison(2, 0, 0, 0, 0.0)


def test_tokens_verdicts_and_scores_are_told_apart() -> None:
    plain = [_answer([1, 9]), *EXPECTED[1:]]
    assert compare(REQUESTS, EXPECTED, plain) == Comparison(2, 0, 1, 0, 0.0)
    # a direction that was dropped: other tokens, and the verdict of one that has fired
    dropped = [EXPECTED[0], _answer([3, 9], 2.0, fired=True), EXPECTED[2]]
    assert compare(REQUESTS, EXPECTED, dropped) == Comparison(2, 1, 0, 0, 0.0)
    silent = [EXPECTED[0], _answer([3, 9], 2.0, fired=False), EXPECTED[2]]
    assert compare(REQUESTS, EXPECTED, silent) == Comparison(2, 1, 0, 1, 0.0)
    drifted = [EXPECTED[0], _answer([3, 4], 2.5, fired=True), EXPECTED[2]]
    assert compare(REQUESTS, EXPECTED, drifted) == Comparison(2, 0, 0, 0, 0.25)


def test_what_was_aborted_is_left_out_and_what_is_missing_differs() -> None:
    aborted = [*EXPECTED[:2], _answer([7, 7], 9.0, fired=True)]
    assert compare(REQUESTS, EXPECTED, aborted) == Comparison(2, 0, 0, 0, 0.0)
    refused = [EXPECTED[0], {"error": "VLLMValidationError: no"}, EXPECTED[2]]
    assert compare(REQUESTS, EXPECTED, refused) == Comparison(2, 1, 0, 1, 0.0)


def test_the_reason_is_the_line_that_names_an_error() -> None:
    told = (
        "INFO starts\nsteering.Unsupported: guards do not go together with graphs yet\nINFO bye\n"
    )
    assert reason(told) == "steering.Unsupported: guards do not go together with graphs yet"
    assert reason("one\ntwo\n") == "two"
    assert reason("") == "it has printed nothing"


def test_decisions_near_to_the_threshold_are_not_held_against_a_device() -> None:
    expected = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    near = expected + 0.01
    clear, everything, apart = decisions("bfloat16", expected, near)
    assert clear.passed and clear.value == 1.0
    # the score at the threshold itself has moved over it
    assert everything.value == pytest.approx(20 / 21)
    assert apart.passed and apart.value == pytest.approx(0.01 / float(expected.std()))
    clear, _, apart = decisions("bfloat16", expected, -expected)
    assert not clear.passed and clear.value == 0.0 and not apart.passed
    clear, _, apart = decisions("float32", expected, expected * torch.nan)
    assert not clear.passed and not apart.passed
