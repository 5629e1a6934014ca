"""An engine that packs requests as vLLM's scheduler does, for the tests of `PackedTable`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from steering.hidden.bank import HiddenBank, Room
from steering.hidden.captured import CapturedTable
from steering.hidden.packed import PackedTable
from steering.hidden.packed_forward import PackedForward
from steering.hidden.rows import Reading, RowGuard
from steering.hidden.table import Table, without_sink
from steering.methods.steer import SteerGuard
from tests.steering.hidden.guards import WIDTH, AnyGuard, bank_of_all, row_guards, whole

LAYERS, CAPACITY, PLACES, PAD = 5, 3, 2000, 2
ROOM = Room(guards=6, steps=8, pool=8, most=6)

GUARD = SteerGuard(
    name="g",
    sense_layers=(0, 1),
    gates=torch.ones(2, WIDTH),
    act_layers=(2, 3),
    directions=torch.ones(2, 2, WIDTH),
    pool=2,
    rest=1,
)


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
        """The result of padded rows: the states after each layer, and the readings."""
        table, after = Table(bank, 1), self.states.clone()
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
                    after[layer, last - 1] = table.act(layer, hidden)[0, -1]
        return after, table.readings(0)


@dataclass
class Engine:
    """Packs requests as a scheduler does, and keeps the states after every layer."""

    bank: HiddenBank
    random: random.Random
    generator: torch.Generator
    captures: bool = False
    """Whether forwards of one token a row run as a captured graph does, padded."""
    requests: dict[int, Request] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.captures:
            roomy = HiddenBank(self.bank.stacks, room=ROOM)
            self.table: PackedTable = CapturedTable(
                roomy, CAPACITY, PLACES, ROOM.most, CAPACITY + PAD
            )
        else:
            self.table = PackedTable(self.bank, CAPACITY, PLACES, len(self.bank))
        self.done: dict[int, int] = {}
        self.places: dict[int, Tensor] = {}
        self.after: dict[int, Tensor] = {}
        self.free = iter(torch.randperm(PLACES, generator=self.generator).split(20))

    def admit(self, row: int, request: Request, cached: Tensor | None = None) -> None:
        """`cached` are the places of the same tokens of another request."""
        self.table.add(row, request.guards)
        self.requests[row], self.after[row] = request, request.states.clone()
        self.done[row] = 0 if cached is None else len(cached)
        fresh = next(self.free)[: request.tokens + 3]
        self.places[row] = fresh if cached is None else torch.cat([cached, fresh[len(cached) :]])

    def preempt(self, row: int) -> None:
        """Recompute the whole request, at other places."""
        self.done[row], self.places[row] = 0, next(self.free)

    def postpone(self, row: int) -> None:
        """The request comes back, on a fresh row or not: from the start, or partly cached."""
        if self.random.random() < 0.5:
            self.preempt(row)
        else:
            self.done[row] = self.random.randint(0, self.done[row])
        if self.random.random() < 0.5:
            self.table.remove(row)
            self.table.add(row, self.requests[row].guards)

    def rebank(self, guards: list[AnyGuard]) -> None:
        """Another bank with these guards, in another order, and at times with an extra one."""
        order = self.random.sample(guards, len(guards))
        extra = SteerGuard(
            name="extra",
            sense_layers=(0,),
            gates=torch.ones(1, WIDTH),
            act_layers=(LAYERS - 1,),
            directions=torch.ones(1, 1, WIDTH),
            pool=4,
            rest=1,
        )
        self.bank = bank_of_all(order + self.random.choice([[], [extra]]))
        self.table.widen(len(self.bank))
        self.table.rebank(self.bank)

    def forward(self, lengths: dict[int, int], drafts: dict[int, int]) -> None:
        """`lengths` tokens of each row, and after them drafts that are rejected."""
        rows = self.random.sample(sorted(lengths), len(lengths))
        total = {row: lengths[row] + drafts.get(row, 0) for row in rows}
        first = {row: self.done[row] + 1 - self.requests[row].prompt for row in rows}
        spans = [slice(self.done[row], self.done[row] + total[row]) for row in rows]
        states = torch.cat([self._states(row, lengths[row], total[row]) for row in rows], 1)
        forward = PackedForward(
            rows,
            [total[row] for row in rows],
            [first[row] for row in rows],
            [self.requests[row].prompt for row in rows],
            torch.cat([self.places[row][span] for row, span in zip(rows, spans, strict=True)]),
            self._before(rows),
        )
        if isinstance(self.table, CapturedTable) and len(rows) == sum(total.values()):
            self.table.begin(forward, captured=True)
            padding = self.random.randint(0, PAD)
            states = torch.cat([states, whole(self.generator, LAYERS, padding, WIDTH)], 1)
        else:
            self.table.begin(forward)
        for layer in range(LAYERS):
            hidden = states[layer].clone()
            if self.table.senses and layer in self.bank.sense_layers:
                self.table.sense(layer, hidden)
            if self.table.acts and layer in self.bank.act_layers:
                self.table.act(layer, hidden)
            at = 0
            for row in rows:
                span = slice(self.done[row], self.done[row] + lengths[row])
                self.after[row][layer, span] = hidden[at : at + lengths[row]]
                at += total[row]
        for row in rows:
            self.done[row] += lengths[row]

    def _before(self, rows: list[int]) -> Callable[[NDArray[np.int64], int], Tensor]:
        def before(stretches: NDArray[np.int64], count: int) -> Tensor:
            # past the end of a request stand places of nobody's, which are not to be read
            wide = [self.places[rows[i]].new_zeros(count) for i in stretches]
            for own, i in zip(wide, stretches, strict=True):
                known = self.places[rows[i]][:count]
                own[: len(known)] = known
            return torch.stack(wide)

        return before

    def _states(self, row: int, real: int, total: int) -> Tensor:
        done = self.done[row]
        rejected = whole(self.generator, LAYERS, total - real, WIDTH)
        return torch.cat([self.requests[row].states[:, done : done + real], rejected], 1)

    def run(self, *, preempts: bool, drafts: bool, rebanks: list[AnyGuard] | None = None) -> None:
        while live := [row for row in self.requests if self.done[row] < self.requests[row].tokens]:
            chosen = [row for row in live if self.random.random() < 0.7] or live
            if preempts and self.random.random() < 0.25:
                self.postpone(self.random.choice(chosen))
            if rebanks and self.random.random() < 0.3:
                self.rebank(rebanks)
            lengths, guessed = {}, {}
            for row in chosen:
                request = self.requests[row]
                left = request.prompt - self.done[row]
                lengths[row] = self.random.randint(1, left) if left > 0 else 1
                if self.done[row] + lengths[row] > request.prompt:
                    left = request.tokens - self.done[row] - lengths[row]
                    lengths[row] += self.random.randint(0, min(2, left)) if drafts else 0
                    guessed[row] = self.random.randint(0, 2) if drafts else 0
            self.forward(lengths, guessed)


@st.composite
def requests(draw: st.DrawFn, bank: list[AnyGuard], seed: int) -> Request:
    prompt, answer = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(seed)
    states = whole(generator, LAYERS, prompt + answer, WIDTH)
    return Request(draw(row_guards(bank)), prompt, states)


def long_request(
    generator: torch.Generator, prompt: int, answer: int = 3, **guard: float
) -> Request:
    carried = RowGuard("g", **({"threshold": 3.1, "strength": 1.0} | guard))
    return Request([carried], prompt, whole(generator, LAYERS, prompt + answer, WIDTH))
