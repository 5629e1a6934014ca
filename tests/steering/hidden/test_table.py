"""The stacked table against a slow reference, and its promises one by one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.hidden.table import Table
from steering.methods.steer import SteerGuard, bank_of
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
from tests.steering.hidden.slow_table import SlowRow
from tests.steering.tiny import random_guard

CAPACITY = 4


@dataclass
class Batch:
    """A table and its slow reference, driven as by an engine."""

    guards: list[AnyGuard]
    generator: torch.Generator
    slow: list[SlowRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bank = bank_of_all(self.guards)
        self.table = Table(self.bank, CAPACITY)

    def join(self, carried: list[list[RowGuard]], padding: list[int], tokens: int) -> None:
        first = len(self.slow)
        for offset, guards in enumerate(carried):
            self.table.add(first + offset, guards)
            self.slow.append(SlowRow(self.guards, guards))
        mask = torch.tensor([[t >= min(pad, tokens - 1) for t in range(tokens)] for pad in padding])
        self.forward(slice(first, len(self.slow)), mask)

    def leave(self, row: int) -> None:
        last = len(self.slow) - 1
        if row != last:
            self.table.move(last, row)
            self.slow[row] = self.slow[last]
        self.table.remove(last)
        self.slow.pop()

    def forward(self, rows: slice, mask: Tensor | None) -> None:
        count = rows.stop - rows.start
        real = torch.ones(count, 1, dtype=torch.bool) if mask is None else mask
        self.table.begin(rows, mask)
        states, got = {}, {}
        for layer in range(5):
            states[layer] = whole(self.generator, count, real.shape[1], WIDTH)
            if self.table.senses and layer in self.bank.sense_layers:
                self.table.sense(layer, states[layer])
            got[layer] = states[layer]
            if self.table.acts and layer in self.bank.act_layers:
                got[layer] = self.table.act(layer, states[layer])
        for offset, row in enumerate(self.slow[rows]):
            before = {layer: hidden[offset] for layer, hidden in states.items()}
            expected = row.forward(before, real[offset].tolist())
            for layer, hidden in expected.items():
                assert torch.equal(got[layer][offset], hidden)
                assert row.steered or same_bits(got[layer][offset], before[layer])
        self.compare()

    def compare(self) -> None:
        for row, slow in enumerate(self.slow):
            readings = self.table.readings(row)
            assert readings.keys() == {guard.row.name for guard in slow.guards}
            for guard in slow.guards:
                got, expected = readings[guard.row.name], guard.reading()
                assert got.score == pytest.approx(expected.score, abs=1e-5)
                assert got.threshold == pytest.approx(expected.threshold)
                assert (got.position, got.valid) == (expected.position, True)
        fired, invalid = self.table.flags(slice(0, len(self.slow)))
        assert fired == [any(g.fired is not None for g in row.guards) for row in self.slow]
        assert not any(invalid)


@pytest.mark.parametrize("strategy", [banks(), mixed_banks()], ids=["steer", "two methods"])
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_table_agrees_with_the_slow_reference(
    strategy: st.SearchStrategy[list[AnyGuard]], data: st.DataObject
) -> None:
    guards = data.draw(strategy)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    batch = Batch(guards, generator)
    for _ in range(data.draw(st.integers(4, 20))):
        free = CAPACITY - len(batch.slow)
        verbs = ["join"] * (free > 0) + ["decode", "decode", "leave"] * bool(batch.slow)
        verb = data.draw(st.sampled_from(verbs))
        if verb == "join":
            carried = data.draw(st.lists(row_guards(guards), min_size=1, max_size=free))
            pads = st.lists(st.integers(0, 3), min_size=len(carried), max_size=len(carried))
            batch.join(carried, data.draw(pads), data.draw(st.integers(1, 5)))
        elif verb == "decode":
            batch.forward(slice(0, len(batch.slow)), None)
        else:
            batch.leave(data.draw(st.integers(0, len(batch.slow) - 1)))


def run(
    bank: HiddenBank, carried: list[list[RowGuard]], states: list[dict[int, Tensor]]
) -> tuple[Table, list[dict[int, Tensor]]]:
    """A prefill and decode steps over fixed states; the states after each layer."""
    table = Table(bank, CAPACITY)
    for row, guards in enumerate(carried):
        table.add(row, guards)
    results = []
    for step, layers in enumerate(states):
        mask = torch.ones(len(carried), layers[0].shape[1], dtype=torch.bool)
        table.begin(slice(0, len(carried)), mask if step == 0 else None)
        out = {}
        for layer, hidden in layers.items():
            if table.senses and layer in bank.sense_layers:
                table.sense(layer, hidden)
            steers = table.acts and layer in bank.act_layers
            out[layer] = table.act(layer, hidden) if steers else hidden
        results.append(out)
    return table, results


def random_states(seed: int, rows: int, width: int, steps: int = 4) -> list[dict[int, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {k: torch.randn(rows, 1 if step else 6, width, generator=generator) for k in range(4)}
        for step in range(steps)
    ]


FIRES = RowGuard("guard", threshold=-1.0, strength=1.0, recheck=-1.0)
SILENT = RowGuard("guard", threshold=1e6, strength=1.0, recheck=1e6)
OBSERVES = dataclasses.replace(FIRES, acts=False)


@pytest.mark.parametrize("quiet", [[], [SILENT], [OBSERVES]], ids=["bare", "silent", "observe"])
def test_quiet_rows_are_bit_identical_beside_a_steered_one(quiet: list[RowGuard]) -> None:
    states = random_states(0, 3, 32)
    _, results = run(bank_of([random_guard()]), [quiet, [FIRES], quiet], states)
    for before, got in zip(states, results, strict=True):
        for layer, hidden in before.items():
            assert same_bits(got[layer][[0, 2]], hidden[[0, 2]])
    assert not torch.equal(results[0][2][1], states[0][2][1]), "the middle row was to be steered"


def test_a_row_is_not_affected_by_the_guards_of_its_neighbours() -> None:
    bank = bank_of([random_guard(), random_guard("other", seed=1, pool=3, steps=1)])
    states = random_states(1, 3, 32)
    other = dataclasses.replace(FIRES, name="other")
    alone, bare = run(bank, [[], [FIRES], []], states)
    among, crowded = run(bank, [[other, FIRES], [FIRES], [other]], states)
    for a, b in zip(bare, crowded, strict=True):
        assert all(same_bits(a[layer][1], b[layer][1]) for layer in a)
    assert alone.readings(1) == among.readings(1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [0, 2])
def test_a_non_finite_state_marks_its_row_and_only_it(bad: float, step: int) -> None:
    bank = bank_of([random_guard(), random_guard("other", seed=1, pool=1)])
    carried = [[FIRES], [SILENT], [SILENT]]
    states = random_states(2, 3, 32)
    sound, expected = run(bank, carried, states)
    states[step][1][1, -1, 3] = bad
    broken, got = run(bank, carried, states)
    assert broken.flags(slice(0, 3))[1] == [False, True, False]
    assert not broken.readings(1)["guard"].valid
    for row in (0, 2):
        assert broken.readings(row) == sound.readings(row)
        for a, b in zip(expected, got, strict=True):
            assert all(same_bits(a[layer][row], b[layer][row]) for layer in a)


def test_two_overflowing_tokens_do_not_pass_unseen() -> None:
    """Two infinite gates, where a pool of one is stacked beside a pool of three: inf * 0 is NaN."""
    guard = random_guard(sense=(1,), pool=1)
    guard = dataclasses.replace(guard, gates=torch.ones(1, 32))
    bank = bank_of([guard, dataclasses.replace(guard, name="wide", pool=3)])
    states = random_states(3, 1, 32, steps=1)
    states[0][1][0, :2] = torch.finfo(torch.float32).max
    table, _ = run(bank, [[SILENT]], states)
    assert table.flags(slice(0, 1))[1] == [True]


def test_padding_may_hold_anything() -> None:
    bank = bank_of([random_guard()])
    table = Table(bank, 1)
    table.add(0, [SILENT])
    table.begin(slice(0, 1), torch.tensor([[False, True, True]]))
    hidden = torch.zeros(1, 3, 32)
    hidden[0, 0] = float("nan")
    for layer in (1, 2):
        table.sense(layer, hidden)
    reading = table.readings(0)["guard"]
    assert reading.valid and reading.score == 0.0


def test_a_slot_forgets_the_request_that_left_it() -> None:
    bank = bank_of([random_guard()])
    states = random_states(4, 1, 32)
    table, _ = run(bank, [[FIRES]], states)
    table.remove(0)
    assert table.readings(0) == {} and table.flags(slice(0, 1)) == ([False], [False])
    table.begin(slice(0, 1), None)
    assert not table.senses and not table.acts
    table.add(0, [SILENT])
    fresh = table.readings(0)["guard"]
    assert (fresh.score, fresh.position, fresh.valid) == (0.0, None, True)


def test_a_moved_row_keeps_its_age_and_schedule() -> None:
    """Row 1 joins three tokens after row 0, moves to its slot, and fires there."""
    guard = random_guard(sense=(0,), act=(0,), steps=2, pool=1)
    guard = dataclasses.replace(guard, gates=torch.ones(1, 32))
    carried = [RowGuard("guard", threshold=1e6, strength=1.0, recheck=100.0)]
    table = Table(bank_of([guard]), 2)
    quiet, loud = torch.zeros(1, 1, 32), torch.full((1, 1, 32), 10.0)

    def forward(rows: slice, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        table.begin(rows, mask)
        table.sense(0, hidden)
        return table.act(0, hidden) if table.acts else hidden

    prompt = torch.ones(1, 1, dtype=torch.bool)
    table.add(0, carried)
    forward(slice(0, 1), quiet, prompt)
    for _ in range(3):
        forward(slice(0, 1), quiet)
    table.add(1, carried)
    forward(slice(1, 2), quiet, prompt)
    forward(slice(0, 2), quiet.expand(2, 1, 32))
    table.move(1, 0)
    assert table.readings(1) == {}
    first = forward(slice(0, 1), loud)
    assert table.readings(0)["guard"].position == 2
    assert torch.equal(first, loud + guard.directions[:1, :1])
    table.move(0, 1)
    table.move(1, 0)
    second = forward(slice(0, 1), quiet)
    assert torch.equal(second, guard.directions[1:, :1])
    assert torch.equal(forward(slice(0, 1), quiet), quiet)


def test_forwards_without_work_are_known_before_they_run() -> None:
    bank = bank_of([random_guard(steps=1)])
    table, results = run(
        bank, [[dataclasses.replace(FIRES, recheck=None)]], random_states(5, 1, 32)
    )
    assert not table.senses and not table.acts
    states = random_states(5, 1, 32)
    assert not torch.equal(results[0][3], states[0][3])
    assert same_bits(results[1][3], states[1][3]), "one step only: nothing is due at the next token"


def test_the_reading_of_a_silent_guard_has_the_last_threshold() -> None:
    patient = RowGuard("guard", threshold=900.0, strength=1.0, recheck=1e6)
    bank = bank_of([random_guard()])
    table, _ = run(bank, [[patient]], random_states(6, 1, 32, steps=1))
    assert table.readings(0)["guard"].threshold == 900.0
    table, _ = run(bank, [[patient]], random_states(6, 1, 32, steps=2))
    assert table.readings(0)["guard"].threshold == 1e6


def test_unknown_guard_is_refused_and_leaves_the_row_as_it_was() -> None:
    table = Table(bank_of([random_guard()]), 1)
    table.add(0, [SILENT])
    with pytest.raises(KeyError, match="ghost"):
        table.add(0, [RowGuard("ghost", 0.0, 1.0)])
    assert list(table.readings(0)) == ["guard"]


@pytest.mark.parametrize(
    ("guards", "match"),
    [
        ([random_guard(), random_guard()], "same name"),
        ([random_guard(), random_guard("b", width=16)], "one width"),
    ],
)
def test_guards_that_cannot_be_stacked_are_refused(guards: list[SteerGuard], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        bank_of(guards)


def test_a_bank_without_guards_works() -> None:
    bank = HiddenBank()
    assert len(bank) == 0 and bank.layers == []
    table, _ = run(bank, [[], []], random_states(7, 2, 32))
    assert not table.senses and table.flags(slice(0, 2)) == ([False, False], [False, False])


def test_half_precision_states_keep_their_dtype_and_bits() -> None:
    bank = bank_of([random_guard()])
    states = [{k: h.bfloat16() for k, h in s.items()} for s in random_states(8, 2, 32)]
    _, results = run(bank, [[FIRES], []], states)
    assert results[0][2].dtype == torch.bfloat16
    assert torch.equal(results[0][2][1], states[0][2][1])
    assert not torch.equal(results[0][2][0], states[0][2][0])
