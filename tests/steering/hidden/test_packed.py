"""Packed rows against padded ones: guards do the same however a forward packs a request."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.hidden.packed import PackedTable
from steering.hidden.rows import RowGuard
from tests.steering.hidden.guards import (
    WIDTH,
    AnyGuard,
    bank_of_all,
    banks,
    mixed_banks,
    row_guards,
    same_bits,
    whole,
)
from tests.steering.hidden.packing import (
    CAPACITY,
    GUARD,
    LAYERS,
    PLACES,
    Engine,
    Request,
    long_request,
    requests,
)

BANKS = pytest.mark.parametrize("strategy", [banks(), mixed_banks()], ids=["steer", "two methods"])


@pytest.mark.parametrize(
    ("strategy", "captures"),
    [(banks(), False), (mixed_banks(), False), (banks(), True)],
    ids=["steer", "two methods", "captured"],
)
@settings(max_examples=300, deadline=None)
@given(data=st.data(), preempts=st.booleans(), drafts=st.booleans())
def test_whatever_is_packed_is_guarded_as_if_alone(
    strategy: st.SearchStrategy[list[AnyGuard]],
    captures: bool,
    data: st.DataObject,
    preempts: bool,
    drafts: bool,
) -> None:
    bank = data.draw(strategy)
    seed = data.draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    engine = Engine(bank_of_all(bank), random.Random(seed), generator, captures)
    for row in range(data.draw(st.integers(1, CAPACITY))):
        engine.admit(row, data.draw(requests(bank, seed + row)))
    engine.run(preempts=preempts, drafts=drafts)
    for row, request in engine.requests.items():
        states, readings = request.alone(engine.bank)
        assert same_bits(engine.after[row], states)
        engine.table.accept(row, request.tokens - request.prompt)
        assert {
            name: (reading.score, reading.position, reading.valid)
            for name, reading in engine.table.readings(row).items()
        } == {
            name: (reading.score, reading.position, reading.valid)
            for name, reading in readings.items()
        }


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_readings_at_any_accepted_draft_are_known(data: st.DataObject) -> None:
    bank = data.draw(mixed_banks())
    seed = data.draw(st.integers(0, 2**16))
    engine = Engine(bank_of_all(bank), random.Random(seed), torch.Generator().manual_seed(seed))
    for row in range(data.draw(st.integers(1, CAPACITY))):
        states = whole(torch.Generator().manual_seed(seed + row), LAYERS, 3 + 4, WIDTH)
        engine.admit(row, Request(data.draw(row_guards(bank)), 3, states))
    engine.forward(dict.fromkeys(engine.requests, 3), {})
    engine.forward(dict.fromkeys(engine.requests, 3), dict.fromkeys(engine.requests, 1))
    rechecking = [
        row
        for row, request in engine.requests.items()
        if any(guard.recheck is not None for guard in request.guards)
    ]
    for step in (1, 2):
        readings_of = engine.table.read_at(rechecking, [step] * len(rechecking))
        for row, readings in zip(rechecking, readings_of, strict=True):
            request = engine.requests[row]
            shorter = replace(request, states=request.states[:, : 3 + step])
            _, expected = shorter.alone(engine.bank)
            assert readings == [expected[guard.name] for guard in request.guards]


@BANKS
@settings(max_examples=200, deadline=None)
@given(data=st.data(), preempts=st.booleans(), drafts=st.booleans())
def test_a_bank_is_swapped_under_running_rows(
    strategy: st.SearchStrategy[list[AnyGuard]], data: st.DataObject, preempts: bool, drafts: bool
) -> None:
    guards = data.draw(strategy)
    seed = data.draw(st.integers(0, 2**16))
    engine = Engine(bank_of_all(guards), random.Random(seed), torch.Generator().manual_seed(seed))
    before = engine.bank
    for row in range(data.draw(st.integers(1, CAPACITY))):
        engine.admit(row, data.draw(requests(guards, seed + row)))
    engine.run(preempts=preempts, drafts=drafts, rebanks=guards)
    for row, request in engine.requests.items():
        states, readings = request.alone(before)
        # sums of other order
        torch.testing.assert_close(engine.after[row], states, rtol=1e-4, atol=1e-4, equal_nan=True)
        engine.table.accept(row, request.tokens - request.prompt)
        packed = engine.table.readings(row)
        assert packed.keys() == readings.keys()
        for name, reading in readings.items():
            assert (packed[name].position, packed[name].valid) == (reading.position, reading.valid)
            assert packed[name].score == pytest.approx(reading.score, rel=1e-4, nan_ok=True)


def test_a_guard_that_a_row_carries_cannot_be_removed() -> None:
    engine = Engine(bank_of_all([GUARD]), random.Random(0), torch.Generator().manual_seed(3))
    engine.admit(0, long_request(engine.generator, 5))
    with pytest.raises(ValueError, match="carry guards that the new bank lacks: g"):
        engine.table.rebank(bank_of_all([replace(GUARD, name="other")]))
    engine.table.remove(0)
    engine.table.rebank(bank_of_all([replace(GUARD, name="other")]))


def test_a_row_with_more_guards_than_the_table_has_room_for_is_refused() -> None:
    table = PackedTable(bank_of_all([GUARD, replace(GUARD, name="h")]), CAPACITY, PLACES, 1)
    both = [RowGuard("g", 1.0, 1.0), RowGuard("h", 1.0, 1.0)]
    with pytest.raises(ValueError, match="room for 1 guards, not 2"):
        table.add(0, both)
    table.widen(2)
    table.add(0, both)


def test_schedules_that_start_again_at_several_tokens_of_a_forward() -> None:
    generator = torch.Generator().manual_seed(3)
    guard = replace(GUARD, directions=torch.ones(1, 2, WIDTH), rest=None)
    engine = Engine(bank_of_all([guard]), random.Random(0), generator)
    always = RowGuard("g", threshold=-1e9, strength=1.0, recheck=-1e9)
    request = Request([always], 3, whole(generator, LAYERS, 9, WIDTH))
    engine.admit(0, request)
    engine.forward({0: 3}, {})
    for _ in range(5):
        engine.forward({0: 1}, {})
    engine.preempt(0)
    engine.forward({0: 8}, {})
    engine.forward({0: 1}, {})
    expected, _ = request.alone(engine.bank)
    assert same_bits(engine.after[0], expected)
    assert not torch.equal(expected[2:4, 3:], request.states[2:4, 3:])


def test_a_batch_without_guards_neither_senses_nor_acts() -> None:
    generator = torch.Generator().manual_seed(3)
    engine = Engine(bank_of_all([GUARD]), random.Random(0), generator)
    engine.admit(0, Request([], 4, whole(generator, LAYERS, 6, WIDTH)))
    engine.forward({0: 4}, {})
    assert not (engine.table.senses or engine.table.acts)
    engine.admit(1, long_request(generator, 3))
    engine.forward({0: 1, 1: 3}, {})
    assert engine.table.senses and engine.table.acts
    # the guard decides on the prompt alone, but a later request may find the response cached
    engine.forward({0: 1, 1: 1}, {})
    assert engine.table.senses and engine.table.acts


def test_a_guard_that_only_observes_changes_no_bits() -> None:
    generator = torch.Generator().manual_seed(3)
    engine = Engine(bank_of_all([GUARD]), random.Random(0), generator)
    observed = long_request(generator, 5, threshold=-1e9)
    observed.guards = [RowGuard("g", threshold=-1e9, strength=1.0, acts=False)]
    engine.admit(0, observed)
    engine.run(preempts=False, drafts=False)
    assert engine.table.readings(0)["g"].fired
    assert same_bits(engine.after[0], observed.states)


def test_a_state_that_is_not_finite_makes_the_reading_invalid() -> None:
    generator = torch.Generator().manual_seed(3)
    engine = Engine(bank_of_all([GUARD]), random.Random(0), generator)
    broken = long_request(generator, 5)
    broken.states[0, 2, 0] = torch.nan
    engine.admit(0, broken)
    engine.admit(1, long_request(generator, 5))
    engine.forward({0: 5, 1: 5}, {})
    assert not engine.table.readings(0)["g"].valid and engine.table.readings(1)["g"].valid


def test_a_guard_of_another_bank_is_unknown() -> None:
    table = PackedTable(bank_of_all([GUARD]), CAPACITY, PLACES, 1)
    with pytest.raises(KeyError):
        table.add(0, [RowGuard("other", 1.0, 1.0)])
