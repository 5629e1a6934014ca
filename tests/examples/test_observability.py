"""Rules and dashboard of `examples/deployment/observability`, against the metrics there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry

from server.observe.metrics import Metrics
from server.proxy.forwarding.upstreams import Upstreams
from server.proxy.metrics import register_upstream_metrics
from tests.server.live_server import live_server

FOLDER = Path(__file__).parents[2] / "examples" / "deployment" / "observability"
RULES = FOLDER / "alerts.yaml"
NAME = re.compile(r"\binference_guard_\w+")
LABELLED = re.compile(r"(inference_guard_\w+)\{([^}]*)\}")


def expressions() -> Iterator[str]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def metrics() -> dict[str, set[str]]:
    """Names of samples with the labels of each, as the registries of server and proxy have them."""
    proxy = CollectorRegistry()
    register_upstream_metrics(Upstreams(()), proxy)
    found: dict[str, set[str]] = {}
    for registry in (Metrics().registry, proxy):
        for collector, names in registry._collector_to_names.items():
            labels: Any = getattr(collector, "_labelnames", ())
            for name in names:
                found[name] = {*labels} | ({"le"} if name.endswith("_bucket") else set())
    return found


@pytest.mark.parametrize("expression", [*expressions()])
def test_every_metric_and_label_of_an_expression_is_there(expression: str) -> None:
    known = metrics()
    named = NAME.findall(expression)
    assert named and {*named} <= known.keys()
    for name, conditions in LABELLED.findall(expression):
        assert {*re.findall(r"(\w+)\s*[=!]~?", conditions)} <= known[name]
    for labels in re.findall(r"by \(([^)]*)\)", expression):
        assert all({*re.split(r",\s*", labels)} <= known[name] for name in named)


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_prometheus_reads_the_rules() -> None:
    checked = subprocess.run(
        [tool("promtool"), "check", "rules", str(RULES)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_real_prometheus_scrapes_a_server_and_raises_an_alert(tmp_path: Path) -> None:
    program = tool("prometheus")
    rules = RULES.read_text()
    (tmp_path / "alerts.yaml").write_text(rules)
    with live_server() as server:
        target = server.url.removeprefix("http://")
        (tmp_path / "prometheus.yml").write_text(
            f"""
global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: [alerts.yaml]
scrape_configs:
  - job_name: guard
    static_configs: [{{ targets: ["{target}"] }}]
"""
        )
        address = "127.0.0.1:9391"
        process = subprocess.Popen(
            [
                *(program, f"--config.file={tmp_path / 'prometheus.yml'}"),
                *(f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            server.chat("hi")
            deadline, firing = time.monotonic() + 60, set[str]()
            while "GuardNotApplied" not in firing and time.monotonic() < deadline:
                # an increase needs a series that is there and then grows
                server.chat("failing")
                time.sleep(1)
                try:
                    answer = httpx.get(f"http://{address}/api/v1/alerts", timeout=5).json()
                except httpx.TransportError:
                    continue
                firing = {alert["labels"]["alertname"] for alert in answer["data"]["alerts"]}
            assert "GuardNotApplied" in firing
        finally:
            process.terminate()
            process.wait(20)
