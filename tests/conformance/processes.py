"""Servers and the clients' drivers, as processes."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.conformance.clients import Client

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "conformance"
DRIVERS = Path(__file__).parent / "drivers"
PYTHON = BUILD / "venv" / "bin" / "python"
NEWEST = BUILD / "newest"
NODE = BUILD / "node"
_ANSWER_S = 120.0


class DriverFailed(Exception):
    """A client's driver has ended, or does not answer."""


@dataclass
class Running:
    """A running `guard serve` or `guard proxy`, and what it has logged."""

    url: str
    log: Path

    def errors_since(self, size: int) -> list[str]:
        """Lines of the log that are errors, behind its first `size` bytes."""
        lines = self.log.read_bytes()[size:].decode("utf-8", "replace").splitlines()
        return [line for line in lines if "ERROR" in line or "Traceback" in line]


@contextmanager
def running(command: str, config: str, **environment: str) -> Iterator[Running]:
    """`guard COMMAND` under a configuration, on a free port; its files are in `build`."""
    folder = BUILD / command
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / "config.toml", folder / "server.log"
    path.write_text(config)
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "guard", command, "--port", "0", "--json", "-c", str(path)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise DriverFailed(f"guard {command} did not start: {log.read_text()}")
        yield Running(json.loads(line)["url"], log)
    finally:
        _end(process)


class Driver:
    """A client's process, which takes one command after the other."""

    def __init__(self, client: Client) -> None:
        self._log = BUILD / f"{Path(client.driver).stem}.log"
        self._command, self._environment = _command(client), _environment(client)
        self._process: subprocess.Popen[str] | None = None

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """The result of a command."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()
        line = _line(process.stdout)
        if not line:
            self.close()
            raise DriverFailed(f"no result, see {self._log.relative_to(ROOT)}")
        result: dict[str, Any] = json.loads(line)
        return result

    def close(self) -> None:
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("ab") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                cwd=ROOT,
                env=self._environment,
            )
        return self._process


def version_of(client: Client) -> str:
    """The version that is installed."""
    if client.in_node:
        package = NODE / "node_modules" / client.package / "package.json"
        return str(json.loads(package.read_text())["version"])
    code = f"import importlib.metadata as m; print(m.version({client.package!r}))"
    command, environment = [str(PYTHON), "-c", code], _environment(client)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


def why_not(client: Client) -> str:
    """Why the client cannot run here; empty where it can."""
    if not client.in_node:
        return "" if PYTHON.exists() else "make conformance installs it"
    if shutil.which("node") is None:
        return "node is not installed"
    if not (NODE / "node_modules").exists():
        return "npm has not installed its packages"
    return ""


def _command(client: Client) -> list[str]:
    if not client.in_node:
        return [str(PYTHON), "-m", f"tests.conformance.drivers.python.{Path(client.driver).stem}"]
    # node looks for packages beside the file
    for path in (DRIVERS / "node").glob("*.mjs"):
        shutil.copy(path, NODE)
    return ["node", str(NODE / client.driver)]


def _environment(client: Client) -> dict[str, str]:
    """The caller's, less what would set up a client in its own way."""
    prefixes = ("OPENAI_", "ANTHROPIC_", "LITELLM_", "LANGSMITH_", "LANGCHAIN_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    kept |= {"NO_PROXY": "127.0.0.1", "LLM_USER_PATH": str(BUILD / "llm")}
    return {**kept, "PYTHONPATH": str(NEWEST)} if client.newest else kept


def _line(stream: IO[str]) -> str:
    ready, _, _ = select.select([stream], [], [], _ANSWER_S)
    return stream.readline() if ready else ""


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
