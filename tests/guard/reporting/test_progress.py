"""Progress where there is no terminal: no silence of minutes, and no line a second."""

from __future__ import annotations

import time

import pytest

from guard.reporting import progress
from guard.reporting.progress import Lines, stages


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def lines(captured: pytest.CaptureFixture[str]) -> list[str]:
    return captured.readouterr().err.splitlines()


def test_a_tick_says_how_far_and_how_long_yet(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = Lines(clock)
    shown.tick()  # before the first stage
    advance = shown.begin("reading", 600)
    clock.seconds = 15.0
    shown.tick()  # nothing is done: nothing is known
    advance(10)
    advance(5)
    shown.tick()
    advance(585)
    shown.tick()  # done
    assert lines(capsys) == [
        "     0 s  reading (600)",
        "    15 s  reading: 0 of 600",
        "    15 s  reading: 15 of 600, about 10 min left",
    ]


def test_each_stage_counts_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = Lines(clock)
    shown.begin("one", 4)(3)
    clock.seconds = 100.0
    advance = shown.begin("two", 4)
    clock.seconds = 120.0
    advance(1)
    shown.tick()
    assert lines(capsys)[-1] == "   120 s  two: 1 of 4, about 60 s left"
    advance = shown.begin("three", 10_000)
    clock.seconds = 140.0
    advance(10)
    shown.tick()
    assert lines(capsys)[-1].endswith("about 5.5 h left")


def test_a_long_stage_is_not_silent_and_ends_with_its_context(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.02)
    with stages() as shown:
        shown("answers", 2)(1)
        time.sleep(0.2)
    found = lines(capsys)
    assert found[0].endswith("answers (2)") and "answers: 1 of 2, about" in found[1]
    time.sleep(0.1)
    assert not lines(capsys)
