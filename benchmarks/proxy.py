"""Latency that a proxy adds at 100 requests a second, and its throughput, on one core.

    python -m benchmarks.proxy [--litellm PATH/TO/litellm] [--nemo PATH/TO/nemoguardrails]
        [--rounds 5] [--json]

Side by side in front of one stub upstream: nothing, nginx (where Debian's package is installed),
this proxy alone, with its two lists of patterns, with all that operating it takes (a key of a
database with limits on three levels, a chained audit log, spans), and with both, and LiteLLM's
proxy and NeMo Guardrails' server (without any rail) where their commands are given. Each proxy has
one core to itself; the stub and the load generator share another. Each round measures all of them
in a new random order; the report has medians over the rounds. CPU time per request is that of the
proxy's process while it was saturated, which other work on the machine does not change.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.processes import cpu_seconds, free_port, running
from benchmarks.wire import paced, request, saturating
from guard.audit.signing import new_key as audit_key
from guard.config.schema import load_config
from guard.tenants.directory import store_of
from guard.tenants.levels import LevelSettings

PER_SECOND = 100.0
CONNECTIONS = 32
LITELLM_ENVIRONMENT = {
    # on loopback for a minute: LiteLLM would want a key of its own
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "OPENAI_API_KEY": "none",
}
BODY: dict[str, object] = {
    "model": "stub",
    "messages": [{"role": "user", "content": "Tell me about the history of the bicycle. " * 4}],
}
PLAIN = "[server]\n"
OPERATED = """
[tenants]
database = "tenants.sqlite"
[server]
audit_log = "{name}.jsonl"
audit_key = "audit.key"
traces = true
"""
SCREENS = """default_policy = "p"
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
PROXIES = {
    "this proxy": PLAIN,
    "with patterns": PLAIN + SCREENS,
    "keys, limits, audit, traces": OPERATED,
    "all of these": OPERATED + SCREENS,
}
LIMITS = LevelSettings(
    requests_per_minute=10**9,
    tokens_per_minute=10**12,
    concurrent_requests=10_000,
    tokens_per_month=10**14,
)
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
        targets = stack.enter_context(_targets(folder, arguments, cores[-1]))
        result = uvloop.run(_measure(targets, arguments.rounds, arguments.seconds))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    columns = ("p50 ms", "p99 ms", "added p50", "added p99", "CPU ms a request", "requests/s")
    table = Table("in front", *columns)
    for name, row in result.items():
        cells = (row[key] for key in ("p50", "p99", "added_p50", "added_p99", "cpu_ms"))
        table.add_row(name, *(f"{cell:.2f}" for cell in cells), f"{row['per_second']:.0f}")
    Console().print(table)


@dataclass(frozen=True, slots=True)
class _Target:
    """A server under load: its port, the id of its process, and the key that it knows."""

    port: int
    process: int
    key: str = "sk-bench"

    def request(self) -> bytes:
        return request(self.port, BODY, key=self.key)


async def _measure(targets: dict[str, _Target], rounds: int, seconds: float) -> dict[str, Any]:
    latencies: dict[str, list[list[float]]] = {name: [] for name in targets}
    rates: dict[str, list[float]] = {name: [] for name in targets}
    cpu_ms: dict[str, list[float]] = {name: [] for name in targets}
    for target in targets.values():  # warm up
        await saturating(target.port, target.request(), 4, 1.0)
    for number in range(rounds):
        order = list(targets)
        random.Random(number).shuffle(order)
        for name in order:
            target = targets[name]
            raw = target.request()
            latencies[name].append(await paced(target.port, raw, PER_SECOND, seconds))
            before = cpu_seconds(target.process)
            rate = await saturating(target.port, raw, CONNECTIONS, seconds / 2)
            rates[name].append(rate)
            used = cpu_seconds(target.process) - before
            cpu_ms[name].append(1000 * used / (rate * seconds / 2))
    bare50, bare99 = _percentiles(latencies["nothing"])
    result = {}
    for name in targets:
        p50, p99 = _percentiles(latencies[name])
        result[name] = {
            "p50": statistics.median(p50),
            "p99": statistics.median(p99),
            "added_p50": statistics.median(a - b for a, b in zip(p50, bare50, strict=True)),
            "added_p99": statistics.median(a - b for a, b in zip(p99, bare99, strict=True)),
            "cpu_ms": statistics.median(cpu_ms[name]),
            "per_second": statistics.median(rates[name]),
            "per_second_rounds": rates[name],
        }
    return result


def _percentiles(rounds: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Median and 99th percentile of the latencies of each round."""
    return (
        [statistics.median(latencies) for latencies in rounds],
        [statistics.quantiles(latencies, n=100)[98] for latencies in rounds],
    )


@contextmanager
def _targets(folder: Path, peers: argparse.Namespace, core: int) -> Iterator[dict[str, _Target]]:
    """All servers, started, by name; proxies run on `core`."""
    with ExitStack() as stack:
        stub = free_port()
        python = [sys.executable, "-m"]
        start = stack.enter_context
        process = start(running([*python, "benchmarks.stub_upstream", "--port", str(stub)], stub))
        targets = {"nothing": _Target(stub, process)}
        if nginx := shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin"):
            port = free_port()
            config = folder / "nginx.conf"
            config.write_text(NGINX.format(folder=folder, stub=stub, port=port))
            process = start(running([nginx, "-c", str(config)], port, core=core))
            targets["nginx"] = _Target(port, process)
        guard = [*python, "guard", "proxy", "--upstream", f"http://127.0.0.1:{stub}"]
        collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{stub}"}
        audit_key(folder / "audit.key")
        tenant = ""
        for number, (name, toml) in enumerate(PROXIES.items()):
            port, file = free_port(), folder / f"proxy-{number}.toml"
            file.write_text(toml.replace("{name}", file.stem))
            if is_operated := toml.startswith(OPERATED):
                tenant = tenant or _tenant(file)
            command = [*guard, "--config", str(file), "--port", str(port)]
            process = start(running(command, port, core=core, environment=collector))
            targets[name] = _Target(port, process, tenant if is_operated else "sk-bench")
        if peers.litellm is not None:
            port = free_port()
            settings = folder / "litellm.yaml"
            settings.write_text(LITELLM.format(stub=stub))
            command = [str(peers.litellm), "--config", str(settings), "--port", str(port)]
            command += ["--num_workers", "1"]
            process = start(running(command, port, core=core, environment=LITELLM_ENVIRONMENT))
            targets["LiteLLM"] = _Target(port, process)
        if peers.nemo is not None:
            port = free_port()
            settings = folder / "nemo" / "bare" / "config.yml"
            settings.parent.mkdir(parents=True)
            settings.write_text(NEMO.format(stub=stub))
            command = [str(peers.nemo), "server", "--config", str(settings.parents[1])]
            command += ["--default-config-id", "bare", "--disable-chat-ui", "--port", str(port)]
            process = start(
                running(command, port, core=core, environment={"OPENAI_API_KEY": "none"})
            )
            targets["NeMo Guardrails"] = _Target(port, process)
        yield targets


def _tenant(file: Path) -> str:
    """A key with limits on all three levels, in the database of the configuration `file`."""
    store = store_of(load_config(file))
    store.new_organisation("acme", LIMITS)
    store.new_team("acme", "research", LIMITS)
    _, key = store.new_key("acme/research", "laptop", LIMITS)
    store.database.close()
    return key


if __name__ == "__main__":
    main()
