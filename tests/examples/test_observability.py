"""Rules and dashboard of `examples/deployment/observability`, against the metrics there are."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry

from server.observe.metrics import Metrics
from server.observe.replicas import SharedLimitMetrics
from server.policies.metrics import PolicyMetrics
from server.proxy.forwarding.upstreams import Upstreams
from server.proxy.metrics import register_upstream_metrics
from tests.server.endpoints.image_server import serve_toy
from tests.server.live_server import live_server
from tests.server.policies.stand import administered
from tests.server.toy_image_service import serve_images

FOLDER = Path(__file__).parents[2] / "examples" / "deployment" / "observability"
RULES = FOLDER / "alerts.yaml"
NO_SCHEMA = "Grafana's schema is not installed (pip install 'inference-guard[dev]')"
NAME = re.compile(r"\binference_guard_\w+")
LABELLED = re.compile(r"(inference_guard_\w+)\{([^}]*)\}")


def alerts() -> Iterator[str]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]


def dashboard() -> Any:
    return json.loads((FOLDER / "dashboard.json").read_text())


def panel_queries() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def variable_queries() -> list[str]:
    variables = dashboard()["templating"]["list"]
    return [each["query"]["query"] for each in variables if each["type"] == "query"]


def metrics() -> dict[str, set[str]]:
    """Names of samples with the labels of each, as the registries of server and proxy have them."""
    proxy = CollectorRegistry()
    register_upstream_metrics(Upstreams(()), proxy)
    PolicyMetrics(proxy)
    ledger: Any = SimpleNamespace(is_up=True, failures=0, unshared={"refused": 0})
    shared = SharedLimitMetrics(ledger).collect()
    found = {sample.name: {*sample.labels} for family in shared for sample in family.samples}
    for registry in (Metrics().registry, proxy):
        for collector, names in registry._collector_to_names.items():
            labels: Any = getattr(collector, "_labelnames", ())
            for name in names:
                found[name] = {*labels} | ({"le"} if name.endswith("_bucket") else set())
    return found


@pytest.mark.parametrize("expression", [*alerts(), *panel_queries(), *variable_queries()])
def test_every_metric_and_label_of_an_expression_is_there(expression: str) -> None:
    known = metrics()
    named = NAME.findall(expression)
    assert named and {*named} <= known.keys()
    for name, conditions in LABELLED.findall(expression):
        assert {*re.findall(r"(\w+)\s*[=!]~?", conditions)} <= known[name]
    for labels in re.findall(r"by \(([^)]*)\)", expression):
        assert all({*re.split(r",\s*", labels)} <= known[name] for name in named)


def test_the_dashboard_has_what_grafanas_schema_knows_and_nothing_else() -> None:
    """Grafana takes a file with a misspelt member, and shows something else: what its own models
    read and write again must be the file."""
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason=NO_SCHEMA)
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()
    given = dashboard()
    again = json.loads(JSONEncoder().encode(models.Dashboard.from_json(given)))
    assert [*lost(given, again)] == []
    misspelt = dashboard()
    misspelt["panels"][0]["fieldConfig"]["defaults"]["units"] = "s"
    again = json.loads(JSONEncoder().encode(models.Dashboard.from_json(misspelt)))
    assert [*lost(misspelt, again)] == ["panels.0.fieldConfig.defaults.units"]


def lost(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """The paths of what `given` has and `kept` has not, or has otherwise."""
    if isinstance(given, list):
        given, kept = ({str(i): v for i, v in enumerate(each)} for each in (given, kept or ()))
    if not isinstance(given, dict):
        if given != kept:
            yield path
        return
    for name, value in given.items():
        yield from lost(value, (kept or {}).get(name), f"{path}.{name}" if path else name)


def test_panels_have_ids_and_places_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert len({(place["x"], place["y"]) for place in places}) == len(panels)
    assert all(place["x"] + place["w"] <= 24 for place in places)


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


@contextmanager
def prometheus(folder: Path, *targets: str) -> Iterator[str]:
    """A Prometheus that scrapes these URLs each second, with the rules; its own URL."""
    program = tool("prometheus")
    shutil.copy(RULES, folder)
    hosts = [target.removeprefix("http://") for target in targets]
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [RULES.name],
        "scrape_configs": [{"job_name": "guard", "static_configs": [{"targets": hosts}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        [
            *(program, f"--config.file={folder / 'prometheus.yml'}"),
            *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


def asked(url: str, **query: str) -> Any:
    """What Prometheus answers; nothing while it starts. A query that it cannot parse fails."""
    try:
        answer = httpx.get(url, params=query, timeout=20)
    except httpx.TransportError:
        return {}
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return {}
    assert answer.status_code == httpx.codes.OK, f"{query}: {answer.text}"
    return answer.json()["data"]


def has_values(url: str, query: str) -> bool:
    """Whether a query of a panel, with all that its variables offer, gives any number."""
    query = re.sub(r"\$(model|guard|tenant)\b", ".*", query.replace("$__rate_interval", "30s"))
    found = asked(f"{url}/api/v1/query", query=query).get("result", ())
    return any(math.isfinite(float(series["value"][1])) for series in found)


@contextmanager
def traffic(folder: Path) -> Iterator[tuple[list[str], Callable[[], None]]]:
    """Servers of text and of images and a proxy with a shadow: their URLs, and what asks each."""
    for name in ("images", "proxy"):
        (folder / name).mkdir()
    policies = (
        '[policies.strict]\nguards = ["words"]\naction = "block"\n'
        '[policies.strict.shadow]\nguards = ["names"]\naction = "flag"\n'
    )
    with (
        live_server() as text,
        serve_images(folder / "images") as running,
        serve_toy(running) as images,
        administered(folder / "proxy", policies) as admin,
    ):

        def ask() -> None:
            text.chat("hi")
            text.chat("failing")
            images.post()
            for words in ("forbidden", "hello"):
                admin.said(words)

        yield [text.url, images.url, admin.proxy.url], ask


def test_a_real_prometheus_raises_an_alert_and_has_values_for_every_panel(tmp_path: Path) -> None:
    tool("prometheus")
    with traffic(tmp_path) as (urls, ask), prometheus(tmp_path, *urls) as url:
        firing, empty = set[str](), panel_queries()
        deadline = time.monotonic() + 90
        while "GuardNotApplied" not in firing or empty:
            assert time.monotonic() < deadline, empty or firing
            # an increase needs a series that is there and then grows
            ask()
            time.sleep(1)
            alerts = asked(f"{url}/api/v1/alerts").get("alerts", ())
            firing = {alert["labels"]["alertname"] for alert in alerts}
            empty = [query for query in empty if not has_values(url, query)]
        for query in variable_queries():
            series, label = re.findall(r"\w+", query)[1:]
            found = asked(f"{url}/api/v1/label/{label}/values", **{"match[]": series})
            assert found or label == "tenant", query  # no key, no tenant
