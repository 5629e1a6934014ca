"""The speed of two checkouts side by side in one run, for a refactoring.

    python -m benchmarks.before_after --before PATH [--rounds 5]
        [--parts transformers,images,proxy,...] [--tiny] [--json]

`--before` is the checkout to compare this one with, for example a worktree of the last release.
Both run with the interpreter of this command, which needs the packages of both, and the added
models smollm2 and emoji. A checkout is driven through its command line and HTTP alone, so that its
modules may have any names.

Each round starts one server process of each checkout, one after the other in random order, and
measures it under the same load after a warm-up:

    transformers  eight completions in one batch; four have a policy with the shipped guard of
                  examples/harry-potter, of which two ask about its topic (tokens per second)
    images        one request for four images of the concept of its CGCE guard and its latents
                  guard (seconds per image)
    proxy         requests through the proxy with its two lists of patterns, in front of the stub
                  upstream (milliseconds per request)
    chat-none, chat-private
                  2,000 chats of a kilobyte through the proxy, over connections that are kept,
                  under a policy without guards, and one that redacts by both lists and restores
                  (milliseconds per request)
    stream-none, stream-private
                  the same with streamed answers of 100 tokens (milliseconds per token)

Servers compute on one thread. `cpu` is the CPU time of the server process (utime + stime of
/proc/PID/stat), which other work on the machine disturbs little; `wall` is elapsed time. The report
has the medians of both checkouts, and median and quartiles of the ratios after / before within the
rounds. `--tiny` replaces smollm2 by a small random model, made for the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.before_after_parts import PARTS, Part
from benchmarks.processes import cpu_seconds, free_port, running
from benchmarks.rounds import ratios, shuffled_rounds
from benchmarks.tiny_language import write_tiny

HERE = Path(__file__).parents[1]
CLOCKS = ("cpu", "wall")


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5, help="two at least")
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas")
    parser.add_argument("--tiny", action="store_true", help="a small random model for smollm2")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names = arguments.parts.split(",")
    if unknown := set(names) - {*PARTS}:
        parser.error(f"no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    if arguments.rounds < 2:
        parser.error("--rounds must be 2 at least: the spread needs two ratios")
    checkouts = {"before": arguments.before.resolve(), "after": HERE}
    for checkout in checkouts.values():
        require_imports_from(checkout)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.tiny and "transformers" in names:
            write_tiny(folder / "tiny", folder / "tiny.safetensors")
        result = {name: compare(PARTS[name], checkouts, arguments.rounds, folder) for name in names}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    table = Table("part", "figure", "before", "after", "ratio", "quartiles")
    for name, part in result.items():
        for clock in CLOCKS:
            figures = part[clock]
            table.add_row(
                name,
                f"{clock} {part['unit']}",
                f"{figures['before']:.3f}",
                f"{figures['after']:.3f}",
                f"{figures['ratio']:.3f}",
                "{:.3f} to {:.3f}".format(*figures["quartiles"]),
            )
    Console().print(table)


def require_imports_from(checkout: Path) -> None:
    """Raise SystemExit unless servers started in `checkout` import its own packages."""
    code = (
        "import guard, server, steering; print(guard.__file__, server.__file__, steering.__file__)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        cwd=checkout,
        env=os.environ | _environment(checkout),
        capture_output=True,
        text=True,
    )
    if done.returncode or not all(
        Path(path).is_relative_to(checkout) for path in done.stdout.split()
    ):
        raise SystemExit(
            f"{checkout} is no checkout that runs: {done.stdout}{done.stderr}".rstrip()
        )


def compare(
    part: Part,
    checkouts: Mapping[str, Path],
    rounds: int,
    folder: Path,
    command: Sequence[str] = (sys.executable, "-m", "guard"),
) -> dict[str, Any]:
    """Medians of the figures of `before` and `after` by clock, and their ratios round by round.

    `checkouts` are the folders of both; `command` starts the program in either.
    """
    sides = ("before", "after")
    figures: dict[str, dict[str, list[float]]] = {
        clock: {side: [] for side in sides} for clock in CLOCKS
    }
    for number, side in shuffled_rounds(sides, rounds):
        if number == 0:  # each server is warmed up by itself
            continue
        for clock, figure in _measure(part, checkouts[side], folder, command).items():
            figures[clock][side].append(figure)
    result: dict[str, Any] = {"unit": part.unit, "rounds": rounds}
    for clock, by_side in figures.items():
        paired = ratios(by_side["after"], by_side["before"])
        low, _, high = statistics.quantiles(paired, n=4)
        result[clock] = {side: statistics.median(by_side[side]) for side in sides}
        result[clock] |= {"ratio": statistics.median(paired), "quartiles": [low, high]}
        result[clock]["ratios"] = paired
    return result


def _measure(part: Part, checkout: Path, folder: Path, command: Sequence[str]) -> dict[str, float]:
    """The figure of one new server process, by clock."""
    config = folder / "config.toml"
    config.write_text(part.write(checkout, folder), "utf-8")
    port = free_port()
    serve = [*command, part.command, "--config", str(config), "--port", str(port)]
    with ExitStack() as stack:
        if part.command == "proxy":
            upstream = free_port()
            stub = [sys.executable, "-m", "benchmarks.stub_upstream", "--port", str(upstream)]
            stack.enter_context(running(stub, upstream, folder=HERE))
            serve += ["--upstream", f"http://127.0.0.1:{upstream}"]
        process = stack.enter_context(
            running(
                serve,
                port,
                folder=checkout,
                environment=_environment(checkout),
                log=folder / "server.log",
            )
        )
        uvloop.run(part.load(port, True))
        used, began = cpu_seconds(process), time.perf_counter()
        units = uvloop.run(part.load(port, False))
        wall, cpu = time.perf_counter() - began, cpu_seconds(process) - used
    return {"cpu": part.figure(cpu, units), "wall": part.figure(wall, units)}


def _environment(checkout: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(checkout)}


if __name__ == "__main__":
    main()
