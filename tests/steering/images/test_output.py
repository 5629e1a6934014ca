"""Guards that look at finished images: who is read, and what a reading says."""

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
        self.asked: list[list[int]] = []

    def sense(self, latents: Tensor, columns: Sequence[int]) -> Tensor:
        self.asked.append(list(columns))
        return latents[:, [self._first + column for column in columns], 0, 0]


def rows(*scores: Sequence[float]) -> Tensor:
    return torch.tensor(scores)[..., None, None]


def limit(name: str, threshold: float = 0.5, *, acts: bool = True) -> RowGuard:
    return RowGuard(name, threshold, 1.0, acts)


def test_only_what_a_row_carries_is_read() -> None:
    bank = OutputBank([Column("a", "b"), Column("c", first=2)])
    latents = rows((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), (7.0, 8.0, 9.0))
    found = bank.read(latents, [[limit("a"), limit("c")], [], [limit("b")]])
    scores = [{name: told.score for name, told in row.items()} for row in found]
    assert scores == [{"a": 1.0, "c": 3.0}, {}, {"b": 8.0}]


def test_only_guards_that_some_row_carries_are_asked() -> None:
    screens = [Column("a", "b", "c"), Column("d")]
    bank, latents = OutputBank(screens), rows((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    found = bank.read(latents, [[limit("c")], [limit("c"), limit("a")]])
    scores = [{name: told.score for name, told in row.items()} for row in found]
    assert scores == [{"c": 3.0}, {"c": 6.0, "a": 4.0}]
    assert [screen.asked for screen in screens] == [[[0, 2]], []]
    assert bank.read(latents, [[], []]) == ({}, {})
    assert screens[0].asked == [[0, 2]]


def test_a_bank_knows_its_guards() -> None:
    bank = OutputBank([Column("a", "b"), Column("c", first=2)])
    assert bank.names == ("a", "b", "c")
    assert "b" in bank and "d" not in bank and "a" not in OutputBank()


@pytest.mark.parametrize("screens", [[Column("a", "a")], [Column("a"), Column("b", "a")]])
def test_a_name_stands_for_one_guard(screens: Sequence[Column]) -> None:
    with pytest.raises(ValueError, match="same name"):
        OutputBank(screens)


def test_an_unknown_guard_is_named_before_anyone_looks() -> None:
    screen = Column("a")
    with pytest.raises(KeyError, match="no guard ghost, phantom in the bank"):
        OutputBank([screen]).read(
            rows((1.0,), (1.0,)), [[limit("a"), limit("phantom")], [limit("ghost")]]
        )
    assert screen.asked == []


@pytest.mark.parametrize("acts", [True, False])
def test_what_fires_is_not_resolved(acts: bool) -> None:
    """Nothing is done about it here: the policy's fallback decides, whether the row acts or not."""
    bank = OutputBank([Column("a")])
    over, on, under = bank.read(
        rows((0.75,), (0.5,), (0.25,)), [[limit("a", acts=acts)] for _ in range(3)]
    )
    assert (over["a"].fired, over["a"].resolved, over["a"].valid) == (True, False, True)
    assert (over["a"].score, over["a"].threshold) == (0.75, 0.5)
    # a threshold is reached by what it was chosen from
    assert [(told["a"].fired, told["a"].resolved) for told in (on, under)] == [(False, True)] * 2
    assert over["a"].after is None and over["a"].steps == 0


def test_each_row_has_thresholds_of_its_own() -> None:
    bank = OutputBank([Column("a")])
    found = bank.read(rows((1.0,), (1.0,)), [[limit("a", 0.5)], [limit("a", 1.5)]])
    assert [row["a"].fired for row in found] == [True, False]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_invalid_and_does_not_fire(score: float) -> None:
    bank = OutputBank([Column("a", "b")])
    (told, other) = bank.read(rows((score, 1.0), (1.0, 1.0)), [[limit("a"), limit("b")]] * 2)
    assert (told["a"].valid, told["a"].fired, told["a"].resolved) == (False, False, True)
    assert told["b"].valid and told["b"].fired and other["a"].valid and other["a"].fired


def test_as_many_rows_are_read_as_there_are() -> None:
    with pytest.raises(ValueError, match="argument"):
        OutputBank([Column("a")]).read(rows((1.0,), (1.0,)), [[limit("a")]])
