"""The suite's figures: shares with their intervals, rewordings that reword."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.evaluation.shares import Share
from guard.evaluation.unlearn.rewordings import REWORDINGS, reword
from guard.fitting.steering.wordings import WRAPPERS


def test_the_interval_is_wilsons() -> None:
    # Newcombe 1998, table I: 81 of 263
    low, high = Share(81, 263).interval
    assert low == pytest.approx(0.2553, abs=1e-4)
    assert high == pytest.approx(0.3662, abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share(counts: tuple[int, int]) -> None:
    share = Share(*counts)
    low, high = share.interval
    assert 0.0 <= low <= share.value + 1e-12
    assert share.value - 1e-12 <= high <= 1.0


def test_no_rewording_was_trained_on() -> None:
    assert len(REWORDINGS) == 10
    assert not set(REWORDINGS.values()) & set(WRAPPERS)


@pytest.mark.parametrize("name", REWORDINGS)
def test_a_rewording_changes_the_prompt_and_keeps_braces(name: str) -> None:
    prompt = "Explain {this} particular question, please?"
    changed = reword(name, prompt)
    assert changed != prompt
    assert "{}" not in changed


def test_typos_touch_long_words_only() -> None:
    assert reword("typos", "Dumbledore is old.") == "dubmledore is old"
