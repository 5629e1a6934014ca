"""`guard demo`: the embedded models, from a configuration to guarded answers and images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from guard.commands.demo import images, questions
from guard.config.schema import ModelConfig, load_config
from guard.errors import GuardError
from guard.models.recipes import RECIPES
from guard.models.shipped import shipped
from guard.models.sources import add_model, added_model

app = typer.Typer(add_completion=False)

_START_S = 180


@app.command(epilog="Example: guard demo --keep")
def demo(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="The configuration file; config.toml here, or the one that ships, if left out.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file of the images, one PNG.")] = Path(
        "demo-pictures.png"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server up until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print answers and images as JSON.")
    ] = False,
) -> None:
    """Serve the configuration on a free port; request the same answers and images guarded and bare.

    A language model answers four questions; an image model generates six images, in one PNG.
    """
    if config is None:
        config = here if (here := Path("config.toml")).exists() else shipped("config.toml")
    settings = load_config(config)
    if not settings.models:
        raise GuardError(f"{config} has no model: add one of `[[models]]`")
    console = Console(stderr=as_json)
    # a terminated demo also stops its server
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for model in settings.models:
        if model.source in RECIPES and added_model(model.source) is None:
            with console.status(f"getting the model {model.source}"):
                add_model(model.source)
    with _server(config, console) as url:
        results: dict[str, Any] = {}
        for model in settings.models:
            policy = model.default_policy or settings.server.default_policy
            if model.engine == "diffusers":
                results["pictures"] = images.generate(url, model.name, policy, console)
                images.grid(results["pictures"], policy, out)
                console.print(images.table(results["pictures"], policy))
                console.print(f"wrote {out}", markup=False, highlight=False, soft_wrap=True)
            else:
                results["answers"] = list(questions.ask(url, model.name, policy, console))
                console.print(questions.side_by_side(results["answers"]))
        if as_json:
            print(json.dumps(results, indent=2, ensure_ascii=False))
        _print_next_steps(console, url if keep else None, config, settings.models[0])
        if keep:
            _wait()


@contextmanager
def _server(config: Path, console: Console) -> Iterator[str]:
    """Run `guard serve` as a user would, in a separate process, on a free port."""
    command = [sys.executable, "-m", "guard", "serve", "--config", str(config), "--port", "0"]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True)
    # a server that never gets ready must not block the demo
    timer = threading.Timer(_START_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        with console.status("starting the server"):
            line = process.stdout.readline()
        timer.cancel()
        if not line:
            raise GuardError(
                f"the server did not start within {_START_S} s: run "
                f"`guard serve --config {config}` to see why"
            )
        yield str(json.loads(line)["url"])
    finally:
        timer.cancel()
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def _request(model: ModelConfig) -> tuple[str, dict[str, Any]]:
    """A path of the server and a body that the model answers."""
    if model.engine == "diffusers":
        return "images/generations", {"model": model.name, "prompt": images.PROMPTS[0]}
    question = {"role": "user", "content": questions.QUESTIONS[0]}
    return "chat/completions", {"model": model.name, "messages": [question]}


def _print_next_steps(console: Console, url: str | None, config: Path, model: ModelConfig) -> None:
    if url:
        console.print(f"The server is up at {url}/v1 (Ctrl-C stops it). Try:", soft_wrap=True)
        path, body = _request(model)
        body_json = json.dumps(body)
        line = f"curl {url}/v1/{path} -H 'Content-Type: application/json' -d '{body_json}'"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    # make runs it from an environment that may not be on the user's PATH
    executable = Path(sys.executable).with_name("guard")
    program = "guard" if shutil.which("guard") else os.path.relpath(executable)
    steps = {
        f"{program} serve --config {config}": "serve it yourself; `demo --keep` does too",
        f"{program} fit --help": "fit a guard for a topic or a concept of your own",
        f"{program} eval --help": "measure what a policy does",
        "docs/fitting.md, docs/serving.md": "the two guides",
    }
    widest = max(map(len, steps))
    console.print("Next:")
    for step, why in steps.items():
        line = f"  {step:{widest}}   {why}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _wait() -> None:
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
