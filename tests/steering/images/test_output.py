"""Guards of finished images: the guards that are run, and their readings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from steering.hidden.rows import RowGuard
from steering.images.output import OutputBank


class Column:
    """Guard i scores channel `first + i`, at the first place."""

    channels = 3

    def __init__(self, *names: str, first: int = 0) -> None:
        self.names: Sequence[str] = names
        self._first = first
        self.calls: list[list[int]] = []

    def sense(self, latents: Tensor, columns: Sequence[int]) -> Tensor:
        self.calls.append(list(columns))
        return latents[:, [self._first + column for column in columns], 0, 0]


def rows(*scores: Sequence[float]) -> Tensor:
    return torch.tensor(scores)[..., None, None]


def limit(name: str, threshold: float = 0.5, *, acts: bool = True) -> RowGuard:
    return RowGuard(name, threshold, 1.0, acts)


def test_a_row_has_the_readings_of_its_guards() -> None:
    bank = OutputBank([Column("a", "b"), Column("c", first=2)])
    latents = rows((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), (7.0, 8.0, 9.0))
    readings = bank.read(latents, [[limit("a"), limit("c")], [], [limit("b")]])
    scores = [{name: reading.score for name, reading in row.items()} for row in readings]
    assert scores == [{"a": 1.0, "c": 3.0}, {}, {"b": 8.0}]


def test_only_guards_that_some_row_carries_are_run() -> None:
    stacks = [Column("a", "b", "c"), Column("d")]
    bank, latents = OutputBank(stacks), rows((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    readings = bank.read(latents, [[limit("c")], [limit("c"), limit("a")]])
    scores = [{name: reading.score for name, reading in row.items()} for row in readings]
    assert scores == [{"c": 3.0}, {"c": 6.0, "a": 4.0}]
    assert [stack.calls for stack in stacks] == [[[0, 2]], []]
    assert bank.read(latents, [[], []]) == ({}, {})
    assert stacks[0].calls == [[0, 2]]


def test_a_bank_knows_its_guards() -> None:
    bank = OutputBank([Column("a", "b"), Column("c", first=2)])
    assert bank.names == ("a", "b", "c")
    assert "b" in bank and "d" not in bank and "a" not in OutputBank()


@pytest.mark.parametrize("stacks", [[Column("a", "a")], [Column("a"), Column("b", "a")]])
def test_a_name_stands_for_one_guard(stacks: Sequence[Column]) -> None:
    with pytest.raises(ValueError, match="same name"):
        OutputBank(stacks)


def test_an_unknown_guard_is_named_before_any_is_run() -> None:
    stack = Column("a")
    with pytest.raises(KeyError, match="no guard ghost, phantom in the bank"):
        OutputBank([stack]).read(
            rows((1.0,), (1.0,)), [[limit("a"), limit("phantom")], [limit("ghost")]]
        )
    assert stack.calls == []


@pytest.mark.parametrize("acts", [True, False])
def test_a_guard_that_fires_is_not_resolved(acts: bool) -> None:
    """The policy's fallback decides, whether the guard acts or not."""
    bank = OutputBank([Column("a")])
    over, on, under = bank.read(
        rows((0.75,), (0.5,), (0.25,)), [[limit("a", acts=acts)] for _ in range(3)]
    )
    assert (over["a"].fired, over["a"].resolved, over["a"].valid) == (True, False, True)
    assert (over["a"].score, over["a"].threshold) == (0.75, 0.5)
    # a score equal to the threshold does not fire: thresholds are scores of the fit
    assert [(row["a"].fired, row["a"].resolved) for row in (on, under)] == [(False, True)] * 2
    assert over["a"].after is None and over["a"].steps == 0


def test_each_row_has_its_thresholds() -> None:
    bank = OutputBank([Column("a")])
    readings = bank.read(rows((1.0,), (1.0,)), [[limit("a", 0.5)], [limit("a", 1.5)]])
    assert [row["a"].fired for row in readings] == [True, False]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_invalid_and_does_not_fire(score: float) -> None:
    bank = OutputBank([Column("a", "b")])
    (first, other) = bank.read(rows((score, 1.0), (1.0, 1.0)), [[limit("a"), limit("b")]] * 2)
    assert (first["a"].valid, first["a"].fired, first["a"].resolved) == (False, False, True)
    assert first["b"].valid and first["b"].fired and other["a"].valid and other["a"].fired


def test_the_numbers_of_rows_must_agree() -> None:
    with pytest.raises(ValueError, match="argument"):
        OutputBank([Column("a")]).read(rows((1.0,), (1.0,)), [[limit("a")]])
