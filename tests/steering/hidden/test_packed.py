"""Packed rows against padded ones: whatever a forward holds of a request, guards do the same."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steering.hidden.bank import HiddenBank
from steering.hidden.packed import Packed, PackedTable
from steering.hidden.rows import Reading, RowGuard
from steering.hidden.table import Table, without_sink
from steering.methods.steer import SteerGuard, bank_of
from tests.steering.hidden.test_table import WIDTH, banks, row_guards, same_bits, whole

LAYERS, CAPACITY, PLACES = 5, 3, 400


@dataclass
class Request:
    """The states of a request's tokens at every layer, `[layers, tokens, width]`."""

    guards: list[RowGuard]
    prompt: int
    states: Tensor

    @property
    def tokens(self) -> int:
        return self.states.shape[1]

    def alone(self, bank: HiddenBank) -> tuple[Tensor, dict[str, Reading]]:
        """What padded rows make of it: the states behind each layer, and the readings."""
        table, found = Table(bank, 1), self.states.clone()
        table.add(0, self.guards)
        for first, last in [
            (0, self.prompt),
            *((t, t + 1) for t in range(self.prompt, self.tokens)),
        ]:
            real = without_sink(torch.ones(1, last, dtype=torch.bool)) if first == 0 else None
            table.begin(slice(0, 1), real)
            for layer in range(LAYERS):
                hidden = self.states[layer, None, first:last]
                if table.senses and layer in bank.sense_layers:
                    table.sense(layer, hidden)
                if table.acts and layer in bank.act_layers:
                    found[layer, last - 1] = table.act(layer, hidden)[0, -1]
        return found, table.readings(0)


@dataclass
class Engine:
    """Packs requests as a scheduler does, and keeps what comes out of every layer."""

    bank: HiddenBank
    random: random.Random
    generator: torch.Generator
    requests: dict[int, Request] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.table = PackedTable(self.bank, CAPACITY, PLACES, len(self.bank))
        self.done: dict[int, int] = {}
        self.places: dict[int, Tensor] = {}
        self.found: dict[int, Tensor] = {}
        self.free = iter(torch.randperm(PLACES, generator=self.generator).split(20))

    def admit(self, row: int, request: Request, cached: Tensor | None = None) -> None:
        """`cached` are places at which another request's same tokens stand."""
        self.table.add(row, request.guards)
        self.requests[row], self.found[row] = request, request.states.clone()
        self.done[row] = 0 if cached is None else len(cached)
        own = next(self.free)[: request.tokens + 3]
        self.places[row] = own if cached is None else torch.cat([cached, own[len(cached) :]])

    def preempt(self, row: int) -> None:
        """All of it is to be computed once more, elsewhere."""
        self.done[row], self.places[row] = 0, next(self.free)

    def put_off(self, row: int) -> None:
        """It comes back, on a fresh row or not: from the beginning, or some of it is cached."""
        if self.random.random() < 0.5:
            self.preempt(row)
        else:
            self.done[row] = self.random.randint(0, self.done[row])
        if self.random.random() < 0.5:
            self.table.remove(row)
            self.table.add(row, self.requests[row].guards)

    def rebank(self, guards: list[SteerGuard]) -> None:
        """Another bank with these guards, in another order, and now and then one more."""
        order = self.random.sample(guards, len(guards))
        more = [replace(GUARD, name="more", pool=4, sense_layers=(0,), gates=torch.ones(1, WIDTH))]
        more = [replace(more[0], act_layers=(LAYERS - 1,), directions=torch.ones(1, 1, WIDTH))]
        self.bank = bank_of(order + self.random.choice([[], more]))
        self.table.widen(len(self.bank))
        self.table.rebank(self.bank)

    def forward(self, lengths: dict[int, int], drafts: dict[int, int]) -> None:
        """`lengths` tokens of each row, and behind them drafts that are not taken."""
        rows = self.random.sample(sorted(lengths), len(lengths))
        own = {row: lengths[row] + drafts.get(row, 0) for row in rows}
        first = {row: self.done[row] + 1 - self.requests[row].prompt for row in rows}
        spans = [slice(self.done[row], self.done[row] + own[row]) for row in rows]
        states = torch.cat([self._states(row, lengths[row], own[row]) for row in rows], 1)
        self.table.begin(
            Packed(
                rows,
                [own[row] for row in rows],
                [first[row] for row in rows],
                [self.requests[row].prompt for row in rows],
                torch.cat([self.places[row][span] for row, span in zip(rows, spans, strict=True)]),
                lambda i, count: self.places[rows[i]][:count],
            )
        )
        for layer in range(LAYERS):
            hidden = states[layer].clone()
            if self.table.senses and layer in self.bank.sense_layers:
                self.table.sense(layer, hidden)
            if self.table.acts and layer in self.bank.act_layers:
                self.table.act(layer, hidden)
            at = 0
            for row in rows:
                taken = slice(self.done[row], self.done[row] + lengths[row])
                self.found[row][layer, taken] = hidden[at : at + lengths[row]]
                at += own[row]
        for row in rows:
            self.done[row] += lengths[row]

    def _states(self, row: int, true: int, all_: int) -> Tensor:
        done = self.done[row]
        wrong = whole(self.generator, LAYERS, all_ - true, WIDTH)
        return torch.cat([self.requests[row].states[:, done : done + true], wrong], 1)

    def run(self, *, preempts: bool, drafts: bool, rebanks: list[SteerGuard] | None = None) -> None:
        while live := [row for row, own in self.requests.items() if self.done[row] < own.tokens]:
            chosen = [row for row in live if self.random.random() < 0.7] or live
            if preempts and self.random.random() < 0.25:
                self.put_off(self.random.choice(chosen))
            if rebanks and self.random.random() < 0.3:
                self.rebank(rebanks)
            lengths, guessed = {}, {}
            for row in chosen:
                request = self.requests[row]
                left = request.prompt - self.done[row]
                lengths[row] = self.random.randint(1, left) if left > 0 else 1
                if self.done[row] + lengths[row] > request.prompt:
                    more = request.tokens - self.done[row] - lengths[row]
                    lengths[row] += self.random.randint(0, min(2, more)) if drafts else 0
                    guessed[row] = self.random.randint(0, 2) if drafts else 0
            self.forward(lengths, guessed)


@st.composite
def requests(draw: st.DrawFn, bank: list[SteerGuard], seed: int) -> Request:
    prompt, answer = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(seed)
    states = whole(generator, LAYERS, prompt + answer, WIDTH)
    return Request(draw(row_guards(bank)), prompt, states)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), preempts=st.booleans(), drafts=st.booleans())
def test_whatever_is_packed_is_guarded_as_if_alone(
    data: st.DataObject, preempts: bool, drafts: bool
) -> None:
    bank = data.draw(banks())
    seed = data.draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    engine = Engine(bank_of(bank), random.Random(seed), generator)
    for row in range(data.draw(st.integers(1, CAPACITY))):
        engine.admit(row, data.draw(requests(bank, seed + row)))
    engine.run(preempts=preempts, drafts=drafts)
    for row, own in engine.requests.items():
        states, readings = own.alone(engine.bank)
        assert same_bits(engine.found[row], states)
        engine.table.taken(row, own.tokens - own.prompt)
        found = engine.table.readings(row)
        assert {n: (r.score, r.position, r.valid) for n, r in found.items()} == {
            n: (r.score, r.position, r.valid) for n, r in readings.items()
        }


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_of_drafts_that_were_taken_each_can_be_the_last(data: st.DataObject) -> None:
    bank = data.draw(banks())
    seed = data.draw(st.integers(0, 2**16))
    engine = Engine(bank_of(bank), random.Random(seed), torch.Generator().manual_seed(seed))
    for row in range(data.draw(st.integers(1, CAPACITY))):
        states = whole(torch.Generator().manual_seed(seed + row), LAYERS, 3 + 4, WIDTH)
        engine.admit(row, Request(data.draw(row_guards(bank)), 3, states))
    engine.forward(dict.fromkeys(engine.requests, 3), {})
    engine.forward(dict.fromkeys(engine.requests, 3), dict.fromkeys(engine.requests, 1))
    rechecking = [
        row
        for row, own in engine.requests.items()
        if any(guard.recheck is not None for guard in own.guards)
    ]
    for step in (1, 2):
        seen = engine.table.read_at(rechecking, [step] * len(rechecking))
        for row, found in zip(rechecking, seen, strict=True):
            own = engine.requests[row]
            _, then = replace(own, states=own.states[:, : 3 + step]).alone(engine.bank)
            assert found == [then[guard.name] for guard in own.guards]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), preempts=st.booleans(), drafts=st.booleans())
def test_a_bank_is_swapped_under_rows_that_run(
    data: st.DataObject, preempts: bool, drafts: bool
) -> None:
    guards = data.draw(banks())
    seed = data.draw(st.integers(0, 2**16))
    engine = Engine(bank_of(guards), random.Random(seed), torch.Generator().manual_seed(seed))
    before = engine.bank
    for row in range(data.draw(st.integers(1, CAPACITY))):
        engine.admit(row, data.draw(requests(guards, seed + row)))
    engine.run(preempts=preempts, drafts=drafts, rebanks=guards)
    for row, own in engine.requests.items():
        states, readings = own.alone(before)
        # sums of other order
        torch.testing.assert_close(engine.found[row], states, rtol=1e-4, atol=1e-4, equal_nan=True)
        engine.table.taken(row, own.tokens - own.prompt)
        found = engine.table.readings(row)
        assert {n: (r.position, r.valid) for n, r in found.items()} == {
            n: (r.position, r.valid) for n, r in readings.items()
        }
        for name, reading in readings.items():
            assert found[name].score == pytest.approx(reading.score, rel=1e-4, nan_ok=True)


def test_a_guard_that_a_row_carries_does_not_go() -> None:
    engine = Engine(bank_of([GUARD]), random.Random(0), torch.Generator().manual_seed(3))
    engine.admit(0, long(engine.generator, 5))
    with pytest.raises(ValueError, match="carry guards that are to go: g"):
        engine.table.rebank(bank_of([replace(GUARD, name="other")]))
    engine.table.remove(0)
    engine.table.rebank(bank_of([replace(GUARD, name="other")]))


def test_a_row_has_no_room_for_more_guards_than_it_was_made_for() -> None:
    table = PackedTable(bank_of([GUARD, replace(GUARD, name="h")]), CAPACITY, PLACES, 1)
    both = [RowGuard("g", 1.0, 1.0), RowGuard("h", 1.0, 1.0)]
    with pytest.raises(ValueError, match="room for 1 guards, not 2"):
        table.add(0, both)
    table.widen(2)
    table.add(0, both)


GUARD = SteerGuard(
    name="g",
    sense_layers=(0, 1),
    gates=torch.ones(2, WIDTH),
    act_layers=(2, 3),
    directions=torch.ones(2, 2, WIDTH),
    pool=2,
    rest=1,
)


def long(generator: torch.Generator, prompt: int, answer: int = 3, **guard: float) -> Request:
    carried = RowGuard("g", **({"threshold": 3.1, "strength": 1.0} | guard))
    return Request([carried], prompt, whole(generator, LAYERS, prompt + answer, WIDTH))


def test_what_stands_in_the_cache_is_decided_on_like_the_rest() -> None:
    """The gates of a cached prefix were left there by whoever computed it."""
    generator = torch.Generator().manual_seed(3)
    engine = Engine(bank_of([GUARD]), random.Random(0), generator)
    first = long(generator, 10)
    # the topic stands at the beginning, and nothing of it in what follows
    first.states[:2, 1:3] = 3.0
    first.states[:2, 3:] = -1.0
    engine.admit(0, first)
    engine.forward({0: 10}, {})
    again = Request(first.guards, 10, first.states.clone())
    engine.admit(1, again, cached=engine.places[0][:8])
    engine.forward({1: 2}, {})
    assert engine.table.readings(1) == engine.table.readings(0)
    assert engine.table.readings(1)["g"].position == 0
    # and where the cache has been copied
    engine.table.remove(1)
    copied = next(engine.free)[:8]
    engine.table.copy(engine.places[0][:8], copied)
    engine.admit(1, again, cached=copied)
    engine.forward({1: 2}, {})
    assert engine.table.readings(1)["g"].position == 0
    # told the same with nothing cached at these places, the topic is not seen
    engine.table.remove(1)
    engine.admit(1, again, cached=next(engine.free)[:8])
    engine.forward({1: 2}, {})
    unknown = engine.table.readings(1)["g"]
    assert unknown.position is None and not unknown.valid


def test_a_request_whose_whole_prompt_is_cached_is_decided_on_again() -> None:
    """It was put off after its prompt, and comes back with all of it in the cache."""
    generator = torch.Generator().manual_seed(3)
    engine = Engine(bank_of([GUARD]), random.Random(0), generator)
    asked = long(generator, 6, answer=4, threshold=-1e9)
    engine.admit(0, asked)
    engine.forward({0: 6}, {})
    engine.forward({0: 1}, {})
    seen = engine.table.readings(0)
    engine.table.remove(0)
    engine.table.add(0, asked.guards)
    engine.forward({0: 1}, {})
    assert engine.table.readings(0) == seen and seen["g"].position == 0
    expected, _ = asked.alone(engine.bank)
    assert same_bits(engine.found[0][:, :8], expected[:, :8])


def test_an_answer_in_the_cache_is_read_as_part_of_the_next_prompt() -> None:
    generator = torch.Generator().manual_seed(3)
    engine = Engine(bank_of([GUARD]), random.Random(0), generator)
    first = long(generator, 4, answer=4)
    first.states[:2] = -1.0
    # the topic is in the answer alone, at which the guard does not look by itself
    first.states[:2, 5:7] = 3.0
    engine.admit(0, first)
    engine.run(preempts=False, drafts=False)
    assert engine.table.readings(0)["g"].position is None
    more = whole(generator, LAYERS, 3, WIDTH)
    more[:2] = -1.0
    following = Request(first.guards, 10, torch.cat([first.states, more], 1))
    engine.admit(1, following, cached=engine.places[0][:8])
    engine.forward({1: 2}, {})
    told = engine.table.readings(1)["g"]
    assert told.valid and told.position == 0


def test_schedules_that_start_again_at_several_tokens_of_a_forward() -> None:
    generator = torch.Generator().manual_seed(3)
    guard = replace(GUARD, directions=torch.ones(1, 2, WIDTH), rest=None)
    engine = Engine(bank_of([guard]), random.Random(0), generator)
    always = RowGuard("g", threshold=-1e9, strength=1.0, recheck=-1e9)
    asked = Request([always], 3, whole(generator, LAYERS, 9, WIDTH))
    engine.admit(0, asked)
    engine.forward({0: 3}, {})
    for _ in range(5):
        engine.forward({0: 1}, {})
    engine.preempt(0)
    engine.forward({0: 8}, {})
    engine.forward({0: 1}, {})
    expected, _ = asked.alone(engine.bank)
    assert same_bits(engine.found[0], expected)
    assert not torch.equal(expected[2:4, 3:], asked.states[2:4, 3:])


def test_a_batch_without_guards_asks_for_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    engine = Engine(bank_of([GUARD]), random.Random(0), generator)
    engine.admit(0, Request([], 4, whole(generator, LAYERS, 6, WIDTH)))
    engine.forward({0: 4}, {})
    assert not (engine.table.senses or engine.table.acts)
    engine.admit(1, long(generator, 3))
    engine.forward({0: 1, 1: 3}, {})
    assert engine.table.senses and engine.table.acts
    # it decides on the prompt alone, but who asks on may find the answer in the cache
    engine.forward({0: 1, 1: 1}, {})
    assert engine.table.senses and engine.table.acts


def test_one_that_only_observes_changes_no_bits() -> None:
    generator = torch.Generator().manual_seed(3)
    engine = Engine(bank_of([GUARD]), random.Random(0), generator)
    watched = long(generator, 5, threshold=-1e9)
    watched.guards = [RowGuard("g", threshold=-1e9, strength=1.0, acts=False)]
    engine.admit(0, watched)
    engine.run(preempts=False, drafts=False)
    assert engine.table.readings(0)["g"].fired
    assert same_bits(engine.found[0], watched.states)


def test_states_that_are_not_finite_are_told() -> None:
    generator = torch.Generator().manual_seed(3)
    engine = Engine(bank_of([GUARD]), random.Random(0), generator)
    broken = long(generator, 5)
    broken.states[0, 2, 0] = torch.nan
    engine.admit(0, broken)
    engine.admit(1, long(generator, 5))
    engine.forward({0: 5, 1: 5}, {})
    assert not engine.table.readings(0)["g"].valid and engine.table.readings(1)["g"].valid


def test_a_guard_of_another_bank_is_unknown() -> None:
    table = PackedTable(bank_of([GUARD]), CAPACITY, PLACES, 1)
    with pytest.raises(KeyError):
        table.add(0, [RowGuard("other", 1.0, 1.0)])
