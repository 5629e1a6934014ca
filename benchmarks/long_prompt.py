"""What a long prompt costs its neighbours and the machine: read in parts, and in one forward.

    python -m benchmarks.long_prompt [--words 4000] [--rounds 3] [--before PATH] [--json]

Each round starts one server process a side, one after the other in random order: with the default
of `max_prefill_tokens`, with a bound that no prompt reaches, and, with `--before`, of another
checkout as it is. A first client reads a streamed answer; meanwhile a second one sends a prompt of
that many words, and a third one, a second later, a prompt of a few words. The report has medians:

    gap     the longest time between two tokens of the first client's answer
    short   the time until the third client has its one token
    long    the time until the second client has its one token
    memory  the most memory of the server above what it held after a warm-up

Servers compute on one thread, and times are seconds of their processor time: what passes on an idle
machine, and other work disturbs it little. The model is smollm2, which must have been added.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.processes import (
    cpu_seconds,
    free_port,
    peak_kib,
    reset_peak,
    resident_kib,
    running,
)
from benchmarks.rounds import shuffled_rounds

HERE = Path(__file__).parents[1]
SENTENCE = "the quick brown fox jumps over a lazy dog near the river"
TOKENS_BEFORE = 5
"""Tokens of the first client's answer before the long prompt is sent."""
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Figures:
    """Seconds, and MiB."""

    gap: float
    short: float
    long: float
    memory: float


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sides = {"in parts": (HERE, ""), "in one forward": (HERE, "max_prefill_tokens = 1_048_576")}
    if arguments.before is not None:
        sides["before"] = (arguments.before.resolve(), "")
    measured: dict[str, list[Figures]] = {side: [] for side in sides}
    for number, side in shuffled_rounds(list(sides), arguments.rounds):
        if number:  # each server is new: no round is needed to warm up
            measured[side].append(measure(*sides[side], arguments.words))
    report({side: medians(figures) for side, figures in measured.items()}, as_json=arguments.json)


def measure(checkout: Path, settings: str, words: int) -> Figures:
    """One server of `checkout` with further `settings` in its `[server]`, and the clients."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        config.write_text(
            f"[server]\nport = {port}\n{settings}\n"
            '[[models]]\nname = "smollm2"\nsource = "smollm2"\ndevice = "cpu"\n'
        )
        command = [sys.executable, "-m", "guard", "serve", "--config", str(config)]
        log = Path(folder) / "log"
        # the modules of the working folder come first
        with running(command, port, folder=checkout, log=log) as process:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            httpx.post(url, json=body("Hello", 2), timeout=TIMEOUT_S).raise_for_status()
            reset_peak(process)
            before = resident_kib(process)
            gap, short, long = asyncio.run(clients(url, words, lambda: cpu_seconds(process)))
            return Figures(gap, short, long, (peak_kib(process) - before) / 1024)


async def clients(url: str, words: int, clock: Callable[[], float]) -> tuple[float, float, float]:
    """Gap, short and long, in seconds of `clock`."""
    times: list[float] = []
    under_way = asyncio.Event()
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:

        async def read() -> None:
            asked = body("Write a long story about a ship.", 400) | {"stream": True}
            async with client.stream("POST", url, json=asked) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if line.startswith("data: "):
                        times.append(clock())
                    if len(times) > TOKENS_BEFORE:
                        under_way.set()

        async def ask(text: str, after: float = 0.0) -> float:
            await asyncio.sleep(after)
            began = clock()
            (await client.post(url, json=body(text, 1))).raise_for_status()
            return clock() - began

        neighbour = asyncio.create_task(read())
        await under_way.wait()
        text = " ".join(islice(cycle(SENTENCE.split()), words))
        long, short = await asyncio.gather(ask(text), ask("Hi", after=1.0))
        if neighbour.done():
            raise SystemExit("the first answer ended before the long prompt did")
        neighbour.cancel()
    return max(b - a for a, b in zip(times, times[1:], strict=False)), short, long


def body(text: str, tokens: int) -> dict[str, object]:
    """A greedy request under no policy."""
    messages = [{"role": "user", "content": text}]
    return {"model": "smollm2", "messages": messages, "max_tokens": tokens, "temperature": 0}


def medians(figures: Sequence[Figures]) -> Figures:
    """The median of each figure."""
    values = [asdict(one) for one in figures]
    return Figures(**{name: statistics.median(v[name] for v in values) for name in values[0]})


def report(results: Mapping[str, Figures], *, as_json: bool) -> None:
    """Print the results."""
    if as_json:
        print(json.dumps({side: asdict(figures) for side, figures in results.items()}, indent=2))
        return
    table = Table("prompt", "longest gap, s", "short prompt, s", "long prompt, s", "memory, MiB")
    for side, one in results.items():
        table.add_row(
            side, f"{one.gap:.2f}", f"{one.short:.2f}", f"{one.long:.1f}", f"{one.memory:.0f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
