"""The cost of what a captured CUDA graph computes for nobody: padding, and guards and slots that no
row uses.

    python -m benchmarks.captured_room

A graph always does all of its work, so its cost is that of its size: of its tokens, of the guards a
row has slots for, and of the room of the bank (`guard_room` in `[server]`). One step of the table
on the CPU is timed at each size beside one decoder layer's multiplication of the same tokens, whose
share it is of a model of 30 such layers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from steering.hidden.bank import HiddenBank, Room
from steering.hidden.captured import CapturedTable
from steering.methods.steer import SteerGuard, SteerGuards

LAYERS = 30
SENSE, ACT = (14, 18), (20, 22, 24)


def main() -> None:
    """Print a table of sizes and times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=576, help="of the residual stream")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("tokens  slots  room   table ms  of 30 layers")
    for tokens in (1, 8, 64, 256):
        layer = _layer(tokens, options.width)
        for most, room in ((2, 8), (8, 8), (2, 64), (2, 1024), (2, 16384)):
            table = _table(tokens, most, room, options.width)
            seconds, model = _medians(_step(table, tokens, options.width), layer, options.rounds)
            share = 100 * seconds / (LAYERS * model)
            print(f"{tokens:6}  {most:5}  {room:5}  {1000 * seconds:8.3f}  {share:10.1f} %")


def _table(tokens: int, most: int, room: int, width: int) -> CapturedTable:
    """For `tokens` rows, with one guard, which nobody carries."""
    guard = SteerGuard(
        name="g",
        sense_layers=SENSE,
        gates=torch.randn(len(SENSE), width),
        act_layers=ACT,
        directions=torch.randn(2, len(ACT), width),
        pool=4,
    )
    bank = HiddenBank([SteerGuards([guard])], room=Room(room, steps=2, pool=4, most=most))
    table = CapturedTable(bank, tokens, 1024, most, tokens)
    table.disengage()
    return table


def _step(table: CapturedTable, tokens: int, width: int) -> Callable[[], None]:
    hidden, residual = torch.randn(tokens, width), torch.randn(tokens, width)

    def step() -> None:
        for layer in SENSE:
            table.sense(layer, hidden, residual)
        for layer in ACT:
            table.act(layer, hidden, residual)

    return step


def _layer(tokens: int, width: int) -> Callable[[], None]:
    """The multiplications of a decoder layer: attention's and those of a gated MLP."""
    states = torch.randn(tokens, width)
    weights = [torch.randn(width, count) for count in (width, width, 3 * width, 3 * width)]
    back = torch.randn(3 * width, width)

    def layer() -> None:
        for weight in weights:
            inner = states @ weight
        inner @ back

    return layer


def _medians(
    first: Callable[[], None], second: Callable[[], None], rounds: int
) -> tuple[float, float]:
    """The median seconds of each, in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(rounds):
            for run, found in zip((first, second), times, strict=True):
                begun = time.perf_counter()
                run()
                found.append(time.perf_counter() - begun)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
