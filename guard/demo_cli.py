"""`guard demo`: the whole way on the embedded model, from a configuration to guarded answers."""

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
from rich.table import Table
from rich.text import Text

from guard.config import Config, load_config
from guard.config_checks import NO_POLICY
from guard.errors import GuardError
from guard.models import RECIPES, add_model, added_model

app = typer.Typer(add_completion=False)

QUESTIONS = (
    "Who wrote the Harry Potter books?",
    "Pub quiz! What is the name of the school that Harry Potter goes to?",
    "Who wrote The Lord of the Rings?",
    "What is the capital of France?",
)
MAX_TOKENS = 48
_START_S = 180


@app.command(epilog="Example: guard demo --keep")
def demo(
    config: Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")] = Path(
        "config.toml"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server up until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
) -> None:
    """Serve the configuration on a free port and ask four questions, guarded and bare."""
    settings = load_config(config)
    if not settings.models:
        raise GuardError(f"{config} has no model: add one of `[[models]]`")
    console = Console(stderr=as_json)
    # a terminated demo takes its server with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for model in settings.models:
        if model.source in RECIPES and added_model(model.source) is None:
            with console.status(f"getting the model {model.source}"):
                add_model(model.source)
    with _server(config, console) as url:
        answers = list(_ask(url, settings, console))
        if as_json:
            print(json.dumps(answers, indent=2, ensure_ascii=False))
        else:
            console.print(side_by_side(answers))
        _say_what_next(console, url if keep else None, config, settings.models[0].name)
        if keep:
            _wait()


@contextmanager
def _server(config: Path, console: Console) -> Iterator[str]:
    """`guard serve` as a user would start it, in a process of its own, on a free port."""
    command = [sys.executable, "-m", "guard", "serve", "--config", str(config), "--port", "0"]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True)
    # a server that never gets ready must not hold the demo for ever
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


def _ask(url: str, settings: Config, console: Console) -> Iterator[dict[str, Any]]:
    # the official client: what any user of OpenAI's interface would do
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="demo", timeout=120)
    model = settings.models[0].name
    policies = (settings.server.default_policy, NO_POLICY)
    for question in QUESTIONS:
        row: dict[str, Any] = {"question": question}
        for policy in policies:
            with console.status(f"{policy}: {question}"):
                reply = client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": question}],
                    temperature=0,
                    max_tokens=MAX_TOKENS,
                    extra_body={"guard": {"policy": policy}},
                )
            row[policy] = {
                "answer": reply.choices[0].message.content,
                "verdict": (reply.model_extra or {})["guard"],
            }
        yield row


def side_by_side(answers: list[dict[str, Any]]) -> Table:
    """The answers of each policy beside each other, with their verdicts."""
    policies = [name for name in answers[0] if name != "question"]
    table = Table(
        expand=True, show_lines=True, title="the same questions, with and without a guard"
    )
    table.add_column("question", ratio=2)
    for policy in policies:
        table.add_column(f"policy {policy}", ratio=3)
    for row in answers:
        cells = [Text(row["question"])]
        for policy in policies:
            cells.append(_cell(row[policy]))
        table.add_row(*cells)
    return table


def _cell(reply: dict[str, Any]) -> Text:
    verdict = reply["verdict"]
    steered = verdict["outcome"] != "pass"
    cell = Text(" ".join(str(reply["answer"]).split()))
    cell.append(f"\n{verdict['outcome']}", style="bold yellow" if steered else "bold green")
    for guard in verdict["guards"]:
        if guard["score"] is not None:
            cell.append(f"  gate {guard['score']:.2f}, threshold {guard['threshold']:.2f}", "dim")
    return cell


def _say_what_next(console: Console, url: str | None, config: Path, model: str) -> None:
    if url:
        console.print(f"The server is up at {url}/v1 (Ctrl-C stops it). Try:", soft_wrap=True)
        messages = [{"role": "user", "content": "Who is Hagrid?"}]
        body = json.dumps({"model": model, "messages": messages})
        line = f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    # make runs it from an environment that the user's shell need not know
    beside = Path(sys.executable).with_name("guard")
    program = "guard" if shutil.which("guard") else os.path.relpath(beside)
    steps = {
        f"{program} serve --config {config}": "serve it yourself; `demo --keep` does too",
        f"{program} fit steer --help": "fit a guard for a topic of your own",
        f"{program} eval unlearn --help": "measure what a policy does",
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
