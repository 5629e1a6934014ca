"""The guards' table by itself: the cost of a forward by the number of loaded guards, and of a
captured one by its size.

    python -m benchmarks.guard_table

With few or many loaded guards the same rows carry the same ones, so that only the rest of the bank
differs. A captured CUDA graph always does all of its work: for tokens that pad the forward, for
slots that no row uses, and for the room of the bank (`guard_room` in `[server]`). Its step on the
CPU is timed beside the multiplications of one decoder layer for the same tokens, and is given as a
share of 30 such layers, together with its number of operators, each a kernel on a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from steering.hidden.bank import HiddenBank, Room
from steering.hidden.captured import CapturedTable
from steering.hidden.packed import PackedTable
from steering.hidden.packed_forward import PackedForward
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuard, SteerGuards

LAYERS = 30
SENSE, ACT = (14, 18), (20, 22, 24)
ROWS, PROMPT = 32, 100


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=576, help="of the residual stream")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--loaded", type=int, nargs="*", default=[16, 256, 10_000])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width, rounds = options.width, options.rounds
    print(
        f"{ROWS} rows, {ROWS // 2} of them with a guard that fires\nloaded  decode ms  prompts ms"
    )
    for loaded in options.loaded:
        table = _packed(loaded, width)
        prompts = _median(_prompts(table, width), rounds)
        decode = _median(_decode(table, width), rounds)
        print(f"{loaded:6}  {1000 * decode:9.2f}  {1000 * prompts:10.1f}")
    print("\ntokens  slots   room  captured ms  of 30 layers  operators")
    for tokens in (1, 8, 64, 256):
        layer = _layer(tokens, width)
        for most, room in ((2, 8), (8, 8), (2, 64), (2, 1024), (2, 16384)):
            step = _captured(tokens, most, room, width)
            seconds, model = _median(step, rounds), _median(layer, rounds)
            share = 100 * seconds / (LAYERS * model)
            shown = f"{tokens:6}  {most:5}  {room:5}  {1000 * seconds:11.3f}  {share:10.1f} %"
            print(f"{shown}  {_operators(step):9}")


def _guards(loaded: int, width: int) -> SteerGuards:
    return SteerGuards(
        [
            SteerGuard(
                name=str(i),
                sense_layers=SENSE,
                gates=torch.randn(len(SENSE), width),
                act_layers=ACT,
                directions=torch.randn(2, len(ACT), width),
                pool=4,
            )
            for i in range(loaded)
        ]
    )


def _packed(loaded: int, width: int) -> PackedTable:
    """Of rows every other one of which carries a guard that checks each token."""
    bank = HiddenBank([_guards(loaded, width)])
    table = PackedTable(bank, ROWS, ROWS * 2 * PROMPT, 1)
    for row in range(0, ROWS, 2):
        table.add(row, [RowGuard(str(row // 2), threshold=0.0, strength=1.0, recheck=0.0)])
    return table


def _prompts(table: PackedTable, width: int) -> Callable[[], None]:
    """The prompts of all rows, again and again."""
    states = torch.randn(ROWS * PROMPT, width)

    def run() -> None:
        for row in range(ROWS):
            table.restart(row)
        _forward(table, states, 1 - PROMPT)

    return run


def _decode(table: PackedTable, width: int) -> Callable[[], None]:
    """The next token of each row, after its prompt."""
    states, steps = torch.randn(ROWS, width), count(1)
    return lambda: _forward(table, states, next(steps))


def _forward(table: PackedTable, states: Tensor, step: int) -> None:
    """A forward of the same number of tokens of each row, from `step` on, and its readings."""
    length = len(states) // ROWS

    def places(stretches: NDArray[np.int64], first: int, last: int) -> Tensor:
        token = torch.arange(first, last) % (2 * PROMPT)
        return torch.from_numpy(stretches)[:, None] * 2 * PROMPT + token

    rows, first = list(range(ROWS)), step + PROMPT - 1
    forward = PackedForward(
        *(rows, [length] * ROWS, [step] * ROWS, [PROMPT] * ROWS),
        places=places(np.arange(ROWS), first, first + length).flatten(),
        before=lambda stretches, tokens: places(stretches, 0, tokens),
    )
    table.begin(forward)
    _pass(table, states.clone(), states)
    table.read(rows)


def _captured(tokens: int, most: int, room: int, width: int) -> Callable[[], None]:
    """A step for nobody."""
    bank = HiddenBank([_guards(1, width)], room=Room(room, steps=2, pool=4, most=most))
    table = CapturedTable(bank, tokens, 1024, most, tokens)
    table.disengage()
    hidden, residual = torch.randn(tokens, width), torch.randn(tokens, width)
    return lambda: _pass(table, hidden, residual)


def _pass(table: PackedTable, hidden: Tensor, residual: Tensor) -> None:
    for layer in SENSE:
        table.sense(layer, hidden, residual)
    for layer in ACT:
        if table.acts:
            table.act(layer, hidden, residual)


def _layer(tokens: int, width: int) -> Callable[[], None]:
    """The multiplications of a decoder layer: attention's and those of a gated MLP."""
    states = torch.randn(tokens, width)
    weights = [torch.randn(width, wide) for wide in (width, width, 3 * width, 3 * width)]
    back = torch.randn(3 * width, width)

    def layer() -> None:
        for weight in weights:
            inner = states @ weight
        inner @ back

    return layer


@torch.inference_mode()
def _median(run: Callable[[], None], rounds: int) -> float:
    """The median seconds of a call."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that compute something."""

    count: int = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **kwargs or {})
        self.count += not getattr(function, "is_view", False)
        return result


@torch.no_grad()
def _operators(run: Callable[[], None]) -> int:
    counter = _Operators()  # type: ignore[no-untyped-call]
    with counter:
        run()
    return counter.count


if __name__ == "__main__":
    main()
