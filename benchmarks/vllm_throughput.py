"""Tokens per second inside vLLM, with the plugin and without it.

    python -m benchmarks.vllm_throughput [--rounds 7] [--json]

It runs in the environment of `make test-vllm`. Each round sends the same requests, all at once and
in a new random order, to engines that stay alive: vLLM without the plugin; the plugin without
guarded requests; and the plugin with half of the requests guarded, with 1, 16 and 256 guards
loaded (0 is the plugin with none). A guarded request has one guard, and as many different ones are
in use as there are. In *silent* traffic nothing fires, so that all engines generate the same
tokens; in *fires* traffic the half of the guarded requests that asks about the topic fires.
*recheck* checks every generated token, *prompt* the prompt alone. The report has medians of the
ratios within the rounds, by elapsed time and by CPU time. *own* is the plugin's share of the CPU
time of the process, and its CPU time for one forward, which other work on the machine does not
disturb (`vllm_plugin_time.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rounds import ratios, shuffled_rounds, summary
from benchmarks.vllm_engine import Engine, Options, Round
from benchmarks.vllm_guards import TRAFFIC, Traffic, guard_name, write_guards
from guard.artifact import Artifact
from guard.models.sources import resolve_source

IDLE, GUARDED = 0.99, 0.97
"""Target throughputs relative to vLLM without the plugin."""
OWN_IDLE, OWN_GUARDED = 0.001, 0.01
"""The most that the plugin may take of the CPU time of the process, as a share."""


@dataclass(frozen=True)
class Side:
    """One side of the comparison: an engine by name, and the policies of its requests."""

    name: str
    engine: str
    policies: tuple[str, ...] = ()


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--loaded", type=int, nargs="+", default=[1, 16, 256], help="guards")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache-mib", type=int, default=512, help="for keys and values")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--graphs", help="a mode of CUDA graphs, by vLLM's name")
    parser.add_argument("--runner", choices=["v1", "v2"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    options = Options(
        model=resolve_source(arguments.model),
        config=None,
        requests=arguments.requests,
        tokens=arguments.tokens,
        eager=arguments.eager,
        threads=arguments.threads,
        cache_mib=arguments.cache_mib,
        dtype=arguments.dtype,
        graphs=arguments.graphs,
        runner=arguments.runner,
    )
    kinds, sides = plan(arguments.loaded, arguments.requests)
    with tempfile.TemporaryDirectory() as folder, started(options, kinds, Path(folder)) as engines:
        result = compare(engines, sides, arguments.rounds)
        result["tokens"] = arguments.requests * arguments.tokens
        result["memory"] = {name: engine.memory() for name, engine in engines.items()}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    _print(result)


def plan(
    loaded: Sequence[int], requests: int, traffic: Sequence[Traffic] = TRAFFIC
) -> tuple[dict[str, tuple[Traffic, ...]], list[Side]]:
    """The engines with guards by their kinds of traffic, and the sides.

    A number of guards below the number of kinds gets an engine for each of the kinds that recheck,
    the more expensive ones, with that many guards in each. No guards, and the most, are measured
    idle too.
    """
    engines: dict[str, tuple[Traffic, ...]] = {}
    sides = [Side("bare", "bare")]
    for count in loaded:
        if not count:
            engines["0"] = ()
            continue
        together = count >= len(traffic)
        for kind in traffic if together else (kind for kind in traffic if kind.rechecks):
            engine = str(count) if together else f"{count} {kind.name}"
            engines[engine] = tuple(traffic) if together else (kind,)
            guards = count // len(engines[engine])
            policies = tuple(guard_name(kind, i) for i in range(min(guards, requests // 2)))
            sides.append(Side(f"{count} {kind.name}", engine, policies))
    idle = sorted({*({0} & {*loaded}), max(loaded)}, reverse=True)
    for count in idle:
        engine = next(each for each in engines if each.split()[0] == str(count))
        sides.insert(1, Side(f"{count} idle", engine))
    return engines, sides


@contextmanager
def started(
    options: Options,
    kinds: Mapping[str, tuple[Traffic, ...]],
    folder: Path,
    *,
    together: bool = False,
    fitted: Artifact | None = None,
) -> Iterator[Mapping[str, Engine]]:
    """The engine `bare`, and those of `kinds` (see `plan`) with their guards, written to `folder`.

    `together` starts all at once. `fitted` is the guard that is copied, None for the shipped one.
    """
    engines = {"bare": Engine(options)}
    try:
        for name, traffic in kinds.items():
            guards = folder / name.replace(" ", "-")
            guards.mkdir()
            if not together:
                [*engines.values()][-1].wait()
            config = write_guards(guards, int(name.split()[0]), traffic, fitted)
            engines[name] = Engine(replace(options, config=config))
        for engine in engines.values():
            engine.wait()
        print("the engines are ready", file=sys.stderr, flush=True)
        yield engines
    finally:
        for engine in engines.values():
            engine.close()


def compare(engines: Mapping[str, Engine], sides: Sequence[Side], rounds: int) -> dict[str, Any]:
    """Seconds of each side, and its throughput relative to the first side in the same round.

    Beside them are the seconds to the first token, the requests whose guard fired, and the requests
    with the same tokens as on the first side. Raises SystemExit where the guards of a side fired,
    or did not, against its name.
    """
    results: dict[str, list[Round]] = {side.name: [] for side in sides}
    for number, side in shuffled_rounds(sides, rounds):
        result = engines[side.engine].round(side.policies)
        if ("fires" in side.name) != bool(result.fired):
            raise SystemExit(f"{side.name}: the guards of {result.fired} requests fired")
        if bool(side.policies) != bool(result.verdicts):
            raise SystemExit(f"{side.name}: {result.verdicts} requests have a verdict")
        if number:
            results[side.name].append(result)
    bare = results[sides[0].name]
    return {
        "sides": {
            name: {
                "wall": summary([r.seconds for r in side], _ratios(bare, side, "seconds")),
                "cpu": summary([r.cpu for r in side], _ratios(bare, side, "cpu")),
                "own": statistics.median(r.plugin_share for r in side),
                "step": statistics.median(r.plugin_step for r in side),
                "first": statistics.median(r.first_token for r in side),
                "guarded": side[-1].verdicts,
                "fired": side[-1].fired,
                "same": sum(
                    tokens == bare_tokens
                    for tokens, bare_tokens in zip(side[-1].tokens, bare[-1].tokens, strict=True)
                ),
            }
            for name, side in results.items()
        }
    }


def _ratios(bare: Sequence[Round], side: Sequence[Round], clock: str) -> list[float]:
    return ratios([getattr(r, clock) for r in bare], [getattr(r, clock) for r in side])


def _print(result: Mapping[str, Any]) -> None:
    table = Table("side", "tok/s", "of bare", "quartiles", "of bare, CPU", "quartiles")
    for heading in ("own, CPU", "own µs a forward", "first token s", "guarded", "fired", "as bare"):
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
            f"{side['step'] * 1e6:.0f}",
            f"{side['first']:.2f}",
            *(str(side[part]) for part in ("guarded", "fired", "same")),
        )
    memory = Table("engine", "resident MB", "guards MB", "kept gates MB", "rows MB")
    for name, sizes in result["memory"].items():
        parts = (sizes.get(part, 0) for part in ("resident", "guards", "kept", "rows"))
        memory.add_row(name, *(f"{part / 1e6:.2f}" for part in parts))
    console = Console()
    console.print(table)
    console.print(
        f"targets: idle at least {IDLE}, guarded at least {GUARDED} of bare; "
        f"own at most {OWN_IDLE:.1%} idle, {OWN_GUARDED:.0%} guarded"
    )
    console.print(memory)


if __name__ == "__main__":
    main()
