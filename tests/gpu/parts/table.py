"""The guards' table in a captured CUDA graph, without vLLM: what it does, and what it takes.

A few layers of random weights stand for a model. The same tokens go through a table whose forwards
replay one graph, and through one that runs each kernel by itself; rows come, go and change their
guards between steps, and the bank is replaced by copying. On a CPU, which has no graphs, what would
be captured is called.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.host_syncs import count_syncs, own_places
from steering.hidden.bank import HiddenBank, Room
from steering.hidden.captured import CapturedTable
from steering.hidden.packed import PackedTable
from steering.hidden.packed_forward import PackedForward
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuards
from tests.gpu.report import Figure
from tests.gpu.settings import Add, Settings
from tests.steering.tiny import random_guard

WIDTH, LAYERS, SENSE, ACT = 576, 4, (0, 1), (2, 3)
LOADED, SMOKE_LOADED = (1, 256, 10_000), (1, 3)
DIFFERENCE = 1e-4
OWN_SYNCS = 0.0


class Model:
    """Layers of random weights, with a table behind them."""

    def __init__(self, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(LAYERS, WIDTH, WIDTH, generator=generator) / WIDTH**0.5
        self.weights = weights.to(device)

    def __call__(self, states: Tensor, table: PackedTable | None) -> Tensor:
        """States `[tokens, width]` behind the last layer."""
        for layer, weight in enumerate(self.weights):
            states = states + torch.tanh(states @ weight)
            if table is not None and layer in SENSE and table.senses:
                table.sense(layer, states)
            if table is not None and layer in ACT and table.acts:
                table.act(layer, states)
        return states


def measure(settings: Settings, add: Add) -> None:
    """With one loaded guard, and many."""
    model, device = Model(settings.device), settings.device
    rows, steps = (4, 6) if settings.smoke else (64, 60)
    for loaded in SMOKE_LOADED if settings.smoke else LOADED:
        table, plain = _tables(loaded, rows, steps, device)
        states = torch.zeros(rows, WIDTH, device=device)
        replay = captured(lambda: model(states, table), table, device)  # noqa: B023
        other, readings = _compared(model, table, plain, states, replay, rows, steps)
        add(Figure(f"{loaded}: tokens with other states", other, "tokens", 0, "at most"))
        add(Figure(f"{loaded}: requests with other readings", readings, "requests", 0, "at most"))
        _cost(f"{loaded}", model, table, states, replay, rows, settings, add)


def _tables(loaded: int, rows: int, steps: int, device: str) -> tuple[CapturedTable, PackedTable]:
    room = Room(guards=loaded, steps=3, pool=2, most=2)
    places = rows * (steps + 1)
    bank = HiddenBank([_stack(range(loaded), device)], device, room=room)
    plain = HiddenBank([_stack(range(loaded), device)], device)
    return CapturedTable(bank, rows, places, 2, rows), PackedTable(plain, rows, places, 2)


def _stack(numbers: Sequence[int], device: torch.device | str) -> SteerGuards:
    """Random guards of these numbers, in this order."""
    guards = [
        random_guard(f"g{i}", sense=SENSE, act=ACT, width=WIDTH, seed=i, size=1.0) for i in numbers
    ]
    return SteerGuards(guards, device)


def captured(run: Callable[[], Tensor], table: CapturedTable, device: str) -> Callable[[], Tensor]:
    """`run` as a graph, captured while the table is of nobody; on a CPU, `run` itself."""
    if device == "cpu":
        return run
    table.disengage()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def _compared(
    model: Model,
    table: CapturedTable,
    plain: PackedTable,
    states: Tensor,
    replay: Callable[[], Tensor],
    rows: int,
    steps: int,
) -> tuple[int, int]:
    """How many tokens have other states, and how many requests other readings."""
    generator = torch.Generator().manual_seed(1)
    age = [0] * rows
    tokens = readings = 0
    for step in range(steps):
        if step == steps // 2:
            # the same guards in other places of the bank
            numbers = range(len(plain.bank))[::-1]
            backwards = HiddenBank([_stack(numbers, states.device)], states.device)
            for each in (table, plain):
                each.rebank(backwards)
        for row in range(rows):
            # every row is left and taken again, at a time of its own
            if step == 0 or (step + row) % 17 == 0:
                age[row] = 0
                for each in (table, plain):
                    each.remove(row)
                    each.add(row, _carried(row + step, len(plain.bank)))
        states.copy_(torch.randn(rows, WIDTH, generator=generator))
        forward = _forward(range(rows), age, steps, states.device)
        table.begin(forward, captured=True)
        after = replay()
        plain.begin(forward)
        expected = model(states, plain)
        apart = (after - expected).abs().amax(1) > DIFFERENCE * expected.abs().amax()
        tokens += int(apart.sum())
        of_both = zip(table.read([*range(rows)]), plain.read([*range(rows)]), strict=True)
        readings += sum(
            [(r.position, r.valid) for r in one] != [(r.position, r.valid) for r in other]
            for one, other in of_both
        )
        age = [each + 1 for each in age]
    return tokens, readings


def _carried(number: int, loaded: int) -> list[RowGuard]:
    """Every third row is bare; the others carry a guard that fires on about half of the tokens."""
    if number % 3 == 0:
        return []
    return [RowGuard(f"g{number % loaded}", threshold=0.0, strength=1.0, recheck=0.0)]


def _forward(
    rows: Sequence[int], age: Sequence[int], steps: int, device: torch.device
) -> PackedForward:
    """One token of each row, of requests with a prompt of one token."""
    first = torch.tensor([row * (steps + 1) for row in rows])
    places, count = first + torch.tensor([age[row] for row in rows]), len(rows)
    return PackedForward(
        *([*rows], [1] * count, [age[row] for row in rows], [1] * count),
        places=places.to(device),
        before=lambda stretches, n: (first[stretches][:, None] + torch.arange(n)).to(device),
    )


def _cost(
    name: str,
    model: Model,
    table: CapturedTable,
    states: Tensor,
    replay: Callable[[], Tensor],
    rows: int,
    settings: Settings,
    add: Add,
) -> None:
    """Microseconds of a step, and waits for the GPU in it, beyond those of a bare graph."""
    steps = 3 if settings.smoke else 50
    for row in range(rows):
        table.remove(row)
        table.add(row, _carried(3 * row + 1, int(name)))
    bare = captured(lambda: model(states, None), table, settings.device)
    places = torch.arange(rows, device=settings.device)
    at = 0

    def guarded() -> None:
        nonlocal at
        for _ in range(steps):
            forward = PackedForward(
                *([*range(rows)], [1] * rows, [at] * rows, [1] * rows),
                places=places,
                before=lambda stretches, n: places[stretches][:, None].expand(-1, n),
            )
            table.begin(forward, captured=True)
            replay()
            at += 1

    def unguarded() -> None:
        for _ in range(steps):
            bare()

    guarded()
    took = {}
    for side, run in (("bare", unguarded), ("guarded", guarded)):
        began = time.perf_counter()
        run()
        if settings.on_gpu:
            torch.cuda.synchronize()
        took[side] = (time.perf_counter() - began) / steps
    add(Figure(f"{name}: a step more than bare", 1e6 * (took["guarded"] - took["bare"]), "µs"))
    waits = (count_syncs(guarded) - count_syncs(unguarded)).per(steps)
    where = ", ".join(f"{place} {times}x" for place, times in [*own_places(guarded).items()][:5])
    add(Figure(f"{name}: waits for the GPU", waits.waits, "a step", OWN_SYNCS, "at most", where))
