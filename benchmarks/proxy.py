"""What a proxy adds: latency at 100 requests a second, and throughput, on one core.

    python -m benchmarks.proxy [--litellm PATH/TO/litellm] [--nemo PATH/TO/nemoguardrails]
        [--rounds 5] [--json]

Side by side in front of one stub upstream: nothing, nginx (Debian's package, where it is), this
proxy without screens and with its pattern screens, and LiteLLM's proxy and NeMo Guardrails' server
(without any rail) where their commands are given.
Each proxy has one core to itself, the stub and the load generator the other. Rounds go through all
of them in an order that is drawn anew; medians over the rounds. Processor time a request is what
the proxy's own process has used while it was saturated: it does not depend on what else the machine
does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.wire import paced, request, saturating

PER_SECOND = 100.0
CONNECTIONS = 32
_PERMIT = "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET"
BODY: dict[str, object] = {
    "model": "stub",
    "messages": [{"role": "user", "content": "Tell me about the history of the bicycle. " * 4}],
}
SCREENS = """
[server]
default_policy = "p"
[[patterns]]
name = "secrets"
source = "secrets"
[[patterns]]
name = "personal-data"
source = "personal-data"
[policies.p]
guards = ["secrets", "personal-data"]
action = "block"
"""
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 2048; }}
http {{
  access_log off; keepalive_requests 100000000;
  client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream stub {{ server 127.0.0.1:{stub}; keepalive 128; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://stub; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
}}
"""
LITELLM = """
model_list:
  - model_name: stub
    litellm_params: {{model: openai/stub, api_base: "http://127.0.0.1:{stub}/v1", api_key: none}}
litellm_settings: {{telemetry: false}}
"""

NEMO = """
models:
  - {{type: main, engine: openai, model: stub,
     parameters: {{base_url: "http://127.0.0.1:{stub}/v1", api_key: none}}}}
"""


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--litellm", type=Path)
    parser.add_argument("--nemo", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.sched_setaffinity(0, {cores[0]})
        ports = stack.enter_context(_targets(folder, arguments, cores[-1]))
        found = uvloop.run(_measure(ports, arguments.rounds, arguments.seconds))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    columns = ("p50 ms", "p99 ms", "added p50", "added p99", "CPU ms a request", "requests/s")
    table = Table("in front", *columns)
    for name, row in found.items():
        cells = (row[key] for key in ("p50", "p99", "added_p50", "added_p99", "cpu_ms"))
        table.add_row(name, *(f"{cell:.2f}" for cell in cells), f"{row['per_second']:.0f}")
    Console().print(table)


@dataclass(frozen=True, slots=True)
class _Target:
    """What is asked: its port, and its process."""

    port: int
    process: int

    def used_s(self) -> float:
        """Processor seconds of the process and its children, of which nginx has one."""
        return sum(map(_used_s, [self.process, *_children(self.process)]))


def _children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()]


def _used_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _measure(ports: dict[str, _Target], rounds: int, seconds: float) -> dict[str, Any]:
    took: dict[str, list[list[float]]] = {name: [] for name in ports}
    rates: dict[str, list[float]] = {name: [] for name in ports}
    used: dict[str, list[float]] = {name: [] for name in ports}
    for target in ports.values():  # warm
        await saturating(target.port, request(target.port, BODY), 4, 1.0)
    for number in range(rounds):
        order = list(ports)
        random.Random(number).shuffle(order)
        for name in order:
            target = ports[name]
            raw = request(target.port, BODY)
            took[name].append(await paced(target.port, raw, PER_SECOND, seconds))
            before = target.used_s()
            rate = await saturating(target.port, raw, CONNECTIONS, seconds / 2)
            rates[name].append(rate)
            used[name].append(1000 * (target.used_s() - before) / (rate * seconds / 2))
    found = {}
    for name in ports:
        p50 = [statistics.median(each) for each in took[name]]
        p99 = [statistics.quantiles(each, n=100)[98] for each in took[name]]
        bare50 = [statistics.median(each) for each in took["nothing"]]
        bare99 = [statistics.quantiles(each, n=100)[98] for each in took["nothing"]]
        found[name] = {
            "p50": statistics.median(p50),
            "p99": statistics.median(p99),
            "added_p50": statistics.median(a - b for a, b in zip(p50, bare50, strict=True)),
            "added_p99": statistics.median(a - b for a, b in zip(p99, bare99, strict=True)),
            "cpu_ms": statistics.median(used[name]),
            "per_second": statistics.median(rates[name]),
            "per_second_rounds": rates[name],
        }
    return found


@contextmanager
def _targets(folder: Path, peers: argparse.Namespace, core: int) -> Iterator[dict[str, _Target]]:
    """Everything running, by name."""
    with ExitStack() as stack:
        stub = free_port()
        here = [sys.executable, "-m"]
        start = stack.enter_context
        process = start(running([*here, "benchmarks.stub_upstream", "--port", str(stub)], stub))
        targets = {"nothing": _Target(stub, process)}
        if nginx := shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin"):
            port = free_port()
            config = folder / "nginx.conf"
            config.write_text(NGINX.format(folder=folder, stub=stub, port=port))
            process = start(running([nginx, "-c", str(config)], port, core))
            targets["nginx"] = _Target(port, process)
        guard = [*here, "guard", "proxy", "--upstream", f"http://127.0.0.1:{stub}"]
        screens = folder / "config.toml"
        screens.write_text(SCREENS)
        for name, more in (("this proxy", []), ("with patterns", ["--config", str(screens)])):
            port = free_port()
            process = start(running([*guard, *more, "--port", str(port)], port, core))
            targets[name] = _Target(port, process)
        if peers.litellm is not None:
            port = free_port()
            settings = folder / "litellm.yaml"
            settings.write_text(LITELLM.format(stub=stub))
            command = [str(peers.litellm), "--config", str(settings), "--port", str(port)]
            process = start(running([*command, "--num_workers", "1"], port, core))
            targets["LiteLLM"] = _Target(port, process)
        if peers.nemo is not None:
            port = free_port()
            settings = folder / "nemo" / "bare" / "config.yml"
            settings.parent.mkdir(parents=True)
            settings.write_text(NEMO.format(stub=stub))
            command = [str(peers.nemo), "server", "--config", str(settings.parents[1])]
            command += ["--default-config-id", "bare", "--disable-chat-ui", "--port", str(port)]
            targets["NeMo Guardrails"] = _Target(port, start(running(command, port, core)))
        yield targets


@contextmanager
def running(command: list[str], port: int, core: int | None = None) -> Iterator[int]:
    """A process that listens; its id."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    process = subprocess.Popen(
        command,
        preexec_fn=pin,  # noqa: PLW1509  # no threads here
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # on loopback for a minute: LiteLLM would want a key of its own
        env=os.environ
        | {"OMP_NUM_THREADS": "1", f"{_PERMIT}_MASTER_KEY": "true", "OPENAI_API_KEY": "none"},
    )
    try:
        until = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{' '.join(command[:4])} does not start")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
