"""The speed of two checkouts side by side in one run, for a refactoring.

    python -m benchmarks.before_after --before PATH [--rounds 5]
        [--parts transformers,images,proxy] [--tiny] [--json]

`--before` is the checkout to compare this one with, for example a worktree of the last release.
Both run with the interpreter of this command, which needs the packages of both, and the added
models smollm2 and emoji. A checkout is driven through its command line and HTTP alone, so that its
modules may have any names.

Each round starts one server process of each checkout, one after the other in random order, and
measures it under the same load after a warm-up:

    transformers  eight completions in one batch; four have a policy with the shipped guard of
                  examples/harry-potter, of which two ask about its topic (tokens per second)
    images        four images in one batch under a CGCE guard and a latents guard; two prompts ask
                  for the guarded concept (seconds per image)
    proxy         requests through the proxy with its two lists of patterns, in front of the stub
                  upstream (milliseconds per request)

Servers compute on one thread. `cpu` is the CPU time of the server process (utime + stime of
/proc/PID/stat), which other work on the machine disturbs little; `wall` is elapsed time. The report
has the medians of both checkouts, and median and quartiles of the ratios after / before within the
rounds. `--tiny` replaces smollm2 by a small random model, made for the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.processes import cpu_seconds, free_port, running
from benchmarks.proxy import BODY, SCREENS
from benchmarks.rounds import ratios, shuffled_rounds
from benchmarks.tiny_language import write_tiny
from benchmarks.wire import Connection, request, saturating

HERE = Path(__file__).parents[1]
TOKENS, STEPS = 48, 25
PROXY_SECONDS, PROXY_CONNECTIONS = 3.0, 16
CLOCKS = ("cpu", "wall")

_LANGUAGE = """
[server]
max_batch = 8
[[models]]
name = "model"
source = {source}
engine = "transformers"
dtype = "float32"
device = "cpu"
[[guards]]
name = "topic"
artifact = {artifact}
[policies.guarded]
guards = ["topic"]
action = "steer"
"""
_IMAGES = """
[server]
max_batch = 4
[[models]]
name = "model"
source = "emoji"
engine = "diffusers"
dtype = "float32"
device = "cpu"
[[guards]]
name = "embedding"
artifact = {embedding}
[[guards]]
name = "latents"
artifact = {latents}
[policies.guarded]
guards = ["embedding", "latents"]
action = "refine"
"""
_PROMPTS = (
    ("The capital of France is", False),
    ("Harry Potter goes to a school named", True),
    ("To bake a loaf of bread, first", False),
    ("A bicycle stays upright because", True),
    ("The three largest planets are", False),
    ("The author of the Harry Potter books is", True),
    ("A short poem about the sea:", False),
    ("Water boils at a temperature of", True),
)
"""A prompt, and whether its row is guarded."""
_IMAGE_PROMPTS = (
    "a house on a green background",
    "a rose",
    "a dog and a banana",
    "a rose and a cat",
)


@dataclass(frozen=True, slots=True)
class Part:
    """A server and its load.

    `write(checkout, folder)` gives the configuration. `load(port, warm_up)` sends the requests and
    gives the units of work that were done; `figure(seconds, units)` is the reported number.
    """

    command: str
    write: Callable[[Path, Path], str]
    load: Callable[[int, bool], Coroutine[Any, Any, int]]
    unit: str
    figure: Callable[[float, int], float]


async def _responses(port: int, path: str, bodies: Sequence[dict[str, object]]) -> list[Any]:
    """The decoded responses of requests that are sent together."""

    async def respond(body: dict[str, object]) -> Any:
        connection = await Connection.open(port)
        status, content = await connection.respond(request(port, body, path))
        connection.close()
        if status != 200:
            raise SystemExit(f"{path} answered {status}: {content[:500]!r}")
        return json.loads(content)

    return list(await asyncio.gather(*map(respond, bodies)))


async def _complete(port: int, warm_up: bool) -> int:
    """Tokens of eight completions."""
    bodies: list[dict[str, object]] = [
        {
            "model": "model",
            "prompt": prompt,
            "max_tokens": 4 if warm_up else TOKENS,
            "temperature": 0,
            "guard": {"policy": "guarded" if guarded else "none"},
        }
        for prompt, guarded in _PROMPTS
    ]
    responses = await _responses(port, "/v1/completions", bodies)
    return sum(response["usage"]["completion_tokens"] for response in responses)


async def _generate_images(port: int, warm_up: bool) -> int:
    """Four images."""
    bodies: list[dict[str, object]] = [
        {
            "model": "model",
            "prompt": prompt,
            "seed": seed,
            "num_inference_steps": 2 if warm_up else STEPS,
            "guidance_scale": 3.0,
            "guard": {"policy": "guarded"},
        }
        for seed, prompt in enumerate(_IMAGE_PROMPTS)
    ]
    responses = await _responses(port, "/v1/images/generations", bodies)
    return sum(len(response["data"]) for response in responses)


async def _saturate(port: int, warm_up: bool) -> int:
    """Requests through the proxy, as fast as it takes them."""
    seconds = 0.5 if warm_up else PROXY_SECONDS
    rate = await saturating(port, request(port, BODY), PROXY_CONNECTIONS, seconds)
    return round(rate * seconds)


def _write_language(checkout: Path, folder: Path) -> str:
    """The configuration of smollm2, or of the tiny model where `folder` holds one."""
    guard = checkout / "examples" / "harry-potter" / "steer.safetensors"
    source = "smollm2"
    if (folder / "tiny").is_dir():
        source, guard = str(folder / "tiny"), folder / "tiny.safetensors"
    return _LANGUAGE.format(source=json.dumps(source), artifact=json.dumps(str(guard)))


def _write_images(checkout: Path, _folder: Path) -> str:
    fitted = checkout / "examples" / "emoji" / "fitted"
    paths = {
        "embedding": fitted / "rose-cgce.safetensors",
        "latents": fitted / "rose-latents.safetensors",
    }
    return _IMAGES.format(**{name: json.dumps(str(path)) for name, path in paths.items()})


PARTS: Mapping[str, Part] = {
    "transformers": Part(
        "serve", _write_language, _complete, "tokens/s", lambda seconds, tokens: tokens / seconds
    ),
    "images": Part(
        "serve",
        _write_images,
        _generate_images,
        "s/image",
        lambda seconds, images: seconds / images,
    ),
    "proxy": Part(
        "proxy",
        lambda _checkout, _folder: SCREENS,
        _saturate,
        "ms/request",
        lambda seconds, requests: 1000 * seconds / requests,
    ),
}


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
