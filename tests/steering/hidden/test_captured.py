"""Rows whose forwards replay a captured graph; `test_packed` holds them against padded ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from steering.hidden.bank import HiddenBank, NoRoom, Room
from steering.hidden.captured import CapturedTable
from steering.hidden.packed_forward import PackedForward
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuard, SteerGuards
from tests.steering.hidden.guards import WIDTH, bank_of_all
from tests.steering.hidden.packing import (
    CAPACITY,
    GUARD,
    PLACES,
    ROOM,
)

WATCH = RowGuard("g", threshold=-100.0, strength=1.0, recheck=-100.0)


def captured_table(names: Sequence[str], room: Room = ROOM) -> CapturedTable:
    bank = bank_of_all([replace(GUARD, name=name) for name in names])
    return CapturedTable(HiddenBank(bank.stacks, room=room), CAPACITY, PLACES, room.most, 8)


def begin(table: CapturedTable, rows: list[int], step: int) -> None:
    """A captured forward of one token of each row at `step`."""
    count = len(rows)
    table.begin(
        PackedForward(
            *(rows, [1] * count, [step] * count, [1] * count),
            places=torch.arange(count) + 10 * step,
            before=lambda stretches, n: torch.zeros(len(stretches), n, dtype=torch.long),
        ),
        captured=True,
    )


def decode(table: CapturedTable, rows: list[int], step: int, states: torch.Tensor) -> torch.Tensor:
    """One token of each row at `step`, padded to the states `[tokens, width]` after layer 2."""
    begin(table, rows, step)
    hidden = states.clone()
    for layer in (0, 1):
        table.sense(layer, states)
    table.act(2, hidden)
    return hidden


def test_tensors_stay_where_they_are_whatever_comes_and_goes() -> None:
    table = captured_table(["g", "h"])
    held = {tensor.data_ptr() for tensor in table.persistent_tensors()}
    table.add(0, [WATCH])
    decode(table, [0], 0, torch.ones(4, WIDTH))
    table.rebank(bank_of_all([replace(GUARD, name=name) for name in ("x", "y", "g")]))
    table.add(1, [replace(WATCH, name="y")])
    decode(table, [0, 1], 1, torch.ones(4, WIDTH))
    table.remove(0)
    table.disengage()
    assert {tensor.data_ptr() for tensor in table.persistent_tensors()} == held


def test_guards_are_replaced_by_copying() -> None:
    table, states = captured_table(["g", "h"]), torch.ones(2, WIDTH)
    table.add(0, [WATCH])
    twice = replace(GUARD, name="y", gates=2 * GUARD.gates, directions=3 * GUARD.directions)
    table.rebank(bank_of_all([twice, GUARD]))
    table.add(1, [replace(WATCH, name="y")])
    after = decode(table, [0, 1], 0, states)
    scores = [reading.score for (reading,) in table.read([0, 1])]
    # two layers, the mean of a pool of two with one token in it
    assert scores == [WIDTH, 2 * WIDTH]
    assert torch.equal(after, torch.stack([states[0] + 1, states[1] + 3]))


@pytest.mark.parametrize(
    ("guards", "told"),
    [
        ([replace(GUARD, name=str(i)) for i in range(7)], "7 guards where there is room for 6"),
        ([replace(GUARD, pool=9)], "largest pool is 9"),
        ([replace(GUARD, directions=torch.ones(9, 2, WIDTH))], "9 steps of a schedule"),
        ([replace(GUARD, act_layers=(3, 4))], "act after layers 4"),
        ([replace(GUARD, sense_layers=(1, 2))], "sense after layers 2"),
        ([replace(GUARD, sense_layers=(0,), gates=torch.ones(1, WIDTH))], "decide after layers 0"),
    ],
)
def test_guards_without_room_are_refused_and_nothing_changes(
    guards: list[SteerGuard], told: str
) -> None:
    table, states = captured_table(["g", "h"]), torch.ones(1, WIDTH)
    table.add(0, [WATCH])
    before = [tensor.clone() for tensor in table.bank.tensors()]
    with pytest.raises(NoRoom, match=told):
        table.bank.take(bank_of_all([*guards]))
    assert all(map(torch.equal, before, table.bank.tensors()))
    assert torch.equal(decode(table, [0], 0, states), states + 1)
    with pytest.raises(NoRoom, match="room for 6"):
        table.widen(7)


def test_what_a_graph_has_bypassed_is_told_to_have_failed() -> None:
    table = captured_table(["g"])
    table.add(0, [WATCH])
    decode(table, [0], 0, torch.ones(1, WIDTH))
    assert table.readings(0)["g"].valid
    begin(table, [0], 1)
    assert not table.readings(0)["g"].valid


def test_padding_is_nobodys_and_nothing_of_it_is_kept() -> None:
    table, states = captured_table(["g"]), torch.ones(8, WIDTH)
    table.add(0, [WATCH])
    states[1:] = torch.nan
    after = decode(table, [0], 0, states)
    assert torch.equal(after[0], states[0] + 1) and after[1:].isnan().all()
    assert table.readings(0)["g"].valid
    states[1:] = 7.0
    assert torch.equal(decode(table, [0], 1, states)[1:], states[1:])


def test_more_than_one_token_of_a_row_is_refused() -> None:
    table = captured_table(["g"])
    table.add(0, [WATCH])
    forward = PackedForward([0], [2], [0], [1], torch.arange(2), lambda at, n: torch.zeros(1, n))
    with pytest.raises(ValueError, match="one token for each row"):
        table.begin(forward, captured=True)


def test_of_many_loaded_guards_only_those_of_the_rows_are_scored() -> None:
    many = [replace(GUARD, name=str(i), gates=i * GUARD.gates) for i in range(200)]
    room = replace(ROOM, guards=256, most=2)
    scored: list[int] = []

    def counting(stack: SteerGuards) -> SteerGuards:
        own = stack.sense

        def sense(layer: int, states: torch.Tensor, columns: torch.Tensor | None = None) -> Any:
            scored.append(256 if columns is None else len(columns))
            return own(layer, states, columns)

        stack.sense = sense  # type: ignore[method-assign]
        return stack

    bank = HiddenBank(bank_of_all([*many]).stacks, room=room)
    table = CapturedTable(bank, CAPACITY, PLACES, room.most, 8)
    counting(bank.stacks[0])  # type: ignore[arg-type]
    table.add(0, [replace(WATCH, name="150")])
    table.add(2, [replace(WATCH, name="7"), replace(WATCH, name="199")])
    decode(table, [2, 0], 0, torch.ones(2, WIDTH))
    assert [reading.score for reading in table.read([0])[0]] == [150 * WIDTH]
    assert [reading.score for reading in table.read([2])[0]] == [7 * WIDTH, 199 * WIDTH]
    assert scored == [CAPACITY * room.most] * 2


def test_a_cleared_table_is_as_new_where_it_was() -> None:
    table, states = captured_table(["g"]), torch.ones(2, WIDTH)
    held = {tensor.data_ptr() for tensor in table.persistent_tensors()}
    table.add(0, [WATCH])
    decode(table, [0], 0, states)
    # what a device holds after its memory was dropped
    for tensor in table.persistent_tensors():
        tensor.copy_(torch.full_like(tensor, 1))
    table.clear()
    table.rebank(bank_of_all([GUARD]))
    assert {tensor.data_ptr() for tensor in table.persistent_tensors()} == held
    table.add(1, [WATCH])
    after = decode(table, [1], 0, states)
    assert torch.equal(after, torch.stack([states[0] + 1, states[1]]))
    assert [reading.score for (reading,) in table.read([1])] == [WIDTH]


def test_a_stage_that_only_acts_finds_what_is_due_in_each_forward() -> None:
    # the layers before are another worker's: their scores come with the states
    first, second = captured_table(["g"]), captured_table(["g"])
    for table in (first, second):
        table.add(0, [WATCH])
    for step, width in ((0, 4), (1, 2), (3, 8)):
        states = torch.ones(width, WIDTH)
        decode(first, [0], step, states)
        scores = first.scores
        assert scores is not None
        hidden, expected = states.clone(), states.clone()
        begin(second, [0], step)
        second.resume(scores, 2)
        for layer in (2, 3):
            second.act(layer, hidden)
        # the schedule has two steps, and starts again at each token that is over the threshold
        expected[0] += 2
        assert torch.equal(hidden, expected)
        assert second.read([0]) == first.read([0])
