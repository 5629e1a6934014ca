"""vLLM's server with the plugin in a process of its own, and who asks it.

`vllm serve` itself looks for a distribution of that name, which the CPU build is not: this is the
module that it runs.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from openai import OpenAI

from guard.tenants.secret import hash_key
from tests.steering.tiny import prompt
from tests.vllm.checkpoint import CONFIG, save, save_tokenizer
from tests.vllm.driver import environment
from tests.vllm.emulation.settings import Settings

ADMIN = "an admin's key"


@dataclass(frozen=True)
class Stand:
    """A running server."""

    folder: Path
    url: str
    process: subprocess.Popen[bytes]

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def configure(self, policies: str = CONFIG) -> None:
        server = f'[server]\naudit_log = "audit.jsonl"\nadmin_hash = "{hash_key(ADMIN)}"\n'
        (self.folder / "config.toml").write_text(server + policies, "utf-8")

    def audited(self) -> list[dict[str, Any]]:
        """The lines of the audit log."""
        return [json.loads(line) for line in (self.folder / "audit.jsonl").open(encoding="utf-8")]

    def reload(self, key: str = ADMIN) -> tuple[int, dict[str, Any]]:
        """An admin's call: status and body."""
        call = Request(
            f"{self.url}/guard/reload", method="POST", headers={"Authorization": f"Bearer {key}"}
        )
        try:
            with urlopen(call, timeout=60) as reply:
                return reply.status, json.loads(reply.read())
        except HTTPError as refused:
            return refused.code, json.loads(refused.read())


def _save(folder: Path) -> None:
    save(folder)
    save_tokenizer(folder / "model")


@contextmanager
def serving(
    folder: Path,
    *more: str,
    policies: str = CONFIG,
    emulated: Settings | None = None,
    saves: Callable[[Path], None] = _save,
) -> Iterator[Stand]:
    """A server of the model that `saves` puts into the folder, with its guards, by default that of
    `tests.vllm.checkpoint`; with `more` arguments; it is eager, or what is `emulated`."""
    saves(folder)
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    options = {
        "--model": str(folder / "model"),
        "--served-model-name": "tiny",
        "--port": str(port),
        "--dtype": "float32",
        "--max-model-len": "512",
        "--max-num-seqs": "8",
    }
    command += [part for pair in options.items() for part in pair] + [*more]
    if emulated is None or not emulated.graphs:
        command.append("--enforce-eager")
    Stand(folder, "", None).configure(policies)  # type: ignore[arg-type]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, env=environment(folder / "config.toml", emulated), stdout=log, stderr=log
        )
    made = Stand(folder, f"http://127.0.0.1:{port}", server)
    try:
        until_up(server, f"{made.url}/health", folder / "log")
        yield made
    finally:
        server.terminate()
        server.wait(60)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def until_up(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until something answers there. Raises AssertionError where the server has ended."""
    for _ in range(1200):
        assert server.poll() is None, log.read_text("utf-8")[-5000:]
        try:
            urlopen(url, timeout=5).close()
            return
        except (URLError, OSError):
            time.sleep(1)
    raise AssertionError("vLLM has not come up")


def asked(policy: str) -> dict[str, object]:
    """The extra body of a request under `policy`."""
    return {"vllm_xargs": {"guard_policy": policy}, "ignore_eos": True}


def words(number: int) -> str:
    """A prompt, another one for each number."""
    return " ".join(f"w{token}" for token in prompt(5 + 3 * number, seed=number))
