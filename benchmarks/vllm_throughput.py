"""Tokens per second inside vLLM, with the plugin and without it: `python -m
benchmarks.vllm_throughput` in the environment of `make test-vllm`.

The same requests, all at once, run by turns through engines that stay alive: vLLM without the
plugin, the plugin with nothing guarded, and with half of the requests guarded, with 1, 16 and 256
guards loaded. Guarded requests carry one guard each (where there are several, each another one).
Of *silent* ones nothing fires, so that all engines generate the same tokens; of those that *fire*
it is the half that asks about the topic. *recheck* looks at every generated token, *prompt* only
at the prompt. Ratios are within a round, whose order is drawn anew; medians over the rounds. They
are of the clock on the wall and of the processor's time; *own* is the share of the latter that the
plugin's functions take in the worker, which holds on a machine with other work to do, too.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rounds import ratios, told
from benchmarks.vllm_engine import Engine, Options, Round
from benchmarks.vllm_guards import TRAFFIC, Traffic, guard_name, write_guards
from guard.models.sources import resolve_source

IDLE, GUARDED = 0.99, 0.97
"""Targets, of vLLM without the plugin."""


@dataclass(frozen=True)
class Side:
    """One of the things compared: an engine by name, the policies that its requests have."""

    name: str
    engine: str
    policies: tuple[str, ...] = ()


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--loaded", type=int, nargs="+", default=[1, 16, 256], help="guards")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache-mib", type=int, default=512, help="for keys and values")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = _measured(arguments, Path(folder))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    _print(result)


def plan(loaded: Sequence[int], requests: int) -> tuple[dict[str, tuple[Traffic, ...]], list[Side]]:
    """The engines with guards and their kinds of traffic, and the sides. A number of guards that
    is too small for all kinds at once has one engine for each of the two that recheck, the dearer
    ones, with that many guards in each."""
    engines: dict[str, tuple[Traffic, ...]] = {}
    sides = [Side("bare", "bare")]
    for count in loaded:
        together = count >= len(TRAFFIC)
        for kind in TRAFFIC if together else (kind for kind in TRAFFIC if kind.rechecks):
            engine = str(count) if together else f"{count} {kind.name}"
            engines[engine] = TRAFFIC if together else (kind,)
            own = count // len(engines[engine])
            policies = tuple(guard_name(kind, i) for i in range(min(own, requests // 2)))
            sides.append(Side(f"{count} {kind.name}", engine, policies))
    most = max(loaded)
    sides.insert(1, Side(f"{most} idle", next(e for e in engines if e.split()[0] == str(most))))
    return engines, sides


def _measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    kinds, sides = plan(arguments.loaded, arguments.requests)

    def started(config: Path | None) -> Engine:
        return Engine(
            Options(
                model=resolve_source(arguments.model),
                config=config,
                requests=arguments.requests,
                tokens=arguments.tokens,
                eager=arguments.eager,
                threads=arguments.threads,
                cache_mib=arguments.cache_mib,
            )
        )

    engines = {"bare": started(None)}
    try:
        for name, own in kinds.items():
            place = folder / name.replace(" ", "-")
            place.mkdir()
            engines[name] = started(write_guards(place, int(name.split()[0]), own))
        print("the engines are ready", file=sys.stderr, flush=True)
        result = compared(engines, sides, arguments.rounds)
        result["tokens"] = arguments.requests * arguments.tokens
        result["memory"] = {name: engine.memory() for name, engine in engines.items()}
    finally:
        for engine in engines.values():
            engine.close()
    return result


def compared(engines: Mapping[str, Engine], sides: Sequence[Side], rounds: int) -> dict[str, Any]:
    """Each side's seconds, throughput over the first side's in the same round, seconds to the
    first token, requests whose guard fired, and requests with the first side's tokens.

    Raises SystemExit where a side's guards did not do what the side is there for.
    """
    taken: dict[str, list[Round]] = {side.name: [] for side in sides}
    draw = random.Random(0)
    for turn in range(rounds + 1):
        for side in draw.sample(sides, len(sides)):
            found = engines[side.engine].round(side.policies)
            if ("fires" in side.name) != bool(found.fired):
                raise SystemExit(f"{side.name}: the guards of {found.fired} requests fired")
            if bool(side.policies) != bool(found.told):
                raise SystemExit(f"{side.name}: {found.told} requests have a verdict")
            if turn:  # the first round warms up
                taken[side.name].append(found)
    bare = taken[sides[0].name]
    return {
        "sides": {
            name: {
                "wall": told([r.seconds for r in own], _ratios(bare, own, "seconds")),
                "cpu": told([r.cpu for r in own], _ratios(bare, own, "cpu")),
                "own": statistics.median(r.own for r in own),
                "first": statistics.median(r.first for r in own),
                "guarded": own[-1].told,
                "fired": own[-1].fired,
                "same": sum(
                    one == other
                    for one, other in zip(own[-1].answers, bare[-1].answers, strict=True)
                ),
            }
            for name, own in taken.items()
        }
    }


def _ratios(bare: Sequence[Round], own: Sequence[Round], clock: str) -> list[float]:
    return ratios([getattr(r, clock) for r in bare], [getattr(r, clock) for r in own])


def _print(result: Mapping[str, Any]) -> None:
    table = Table("side", "tok/s", "of bare", "quartiles", "of bare, CPU", "quartiles")
    for heading in ("own, CPU", "first token s", "guarded", "fired", "as bare"):
        table.add_column(heading)
    for name, side in result["sides"].items():
        clocks = [
            text
            for clock in ("wall", "cpu")
            for text in (
                f"{side[clock]['ratio']:.3f}",
                "{:.3f} to {:.3f}".format(*side[clock]["quartiles"]),
            )
        ]
        table.add_row(
            name,
            f"{result['tokens'] / side['wall']['seconds']:.1f}",
            *clocks,
            f"{side['own']:.2%}",
            f"{side['first']:.2f}",
            *(str(side[part]) for part in ("guarded", "fired", "same")),
        )
    memory = Table("engine", "resident MB", "guards MB", "kept gates MB", "rows MB")
    for name, held in result["memory"].items():
        parts = (held.get(part, 0) for part in ("resident", "guards", "kept", "rows"))
        memory.add_row(name, *(f"{part / 1e6:.2f}" for part in parts))
    console = Console()
    console.print(table)
    console.print(f"targets: idle at least {IDLE}, guarded at least {GUARDED} of bare")
    console.print(memory)


if __name__ == "__main__":
    main()
