"""Labels of metrics: bounded, and made of what the configuration knows."""

from __future__ import annotations

from typing import Any

from guard.config.proxy_schema import UpstreamConfig
from guard.config.schema import Config, ModelConfig, PatternsConfig
from guard.verdict import GuardVerdict, Verdict
from server.observe.metrics import MOST_PAIRS, Metrics


def _config() -> Config:
    return Config(
        models=(ModelConfig(name="own", source="x"),),
        patterns=(PatternsConfig(name="secrets", source="secrets"),),
        upstreams=(UpstreamConfig(name="u", url="http://x", models=("theirs",)),),
    )


def _verdict(model: Any, guard: Any = "secrets", **facts: Any) -> Verdict:
    found = {"score": 1.0, "threshold": 1.0, "fired": True, "action": "block"} | facts
    return Verdict("r", model, "p", "pass", (GuardVerdict(guard, "c", "m", **found),), 1.0)


def _series(metrics: Metrics) -> list[str]:
    return [line for line in metrics.render().decode().splitlines() if not line.startswith("#")]


def test_models_and_guards_that_nobody_configured_are_one_series() -> None:
    metrics = Metrics(_config())
    metrics.verdicts.count(_verdict("one", "odd"))
    series = len(_series(metrics))
    for number in range(1000):
        metrics.verdicts.count(_verdict(f"model {number}", f"guard {number}", action=f"a{number}"))
    metrics.verdicts.count(_verdict("\ud800", "\udfff", action="\ud800"))
    assert len(_series(metrics)) <= series + 2
    assert 'inference_guard_verdicts_total{model="other",outcome="pass",policy="p"} 1002.0' in (
        _series(metrics)
    )


def test_those_that_are_configured_have_their_own() -> None:
    metrics = Metrics(_config())
    for model in ("own", "theirs", ""):
        metrics.verdicts.count(_verdict(model))
    text = metrics.render().decode()
    for model in ("own", "theirs", ""):
        assert f'inference_guard_score_count{{guard="secrets",model="{model}"}} 1.0' in text


def test_values_of_an_upstreams_guard_can_be_anything() -> None:
    metrics = Metrics(_config())
    for odd in ("high", [1], {"a": 1}, None):
        metrics.verdicts.count(_verdict("own", odd, score=odd, after=odd, steps=odd, action=odd))
    assert 'guard="other"' in metrics.render().decode()


def test_statuses_are_those_of_http() -> None:
    metrics = Metrics()
    for status in range(200, 600):
        metrics.observe_request("/v1/chat/completions", status, 0.1)
    lines = [line for line in _series(metrics) if "requests_total" in line]
    assert len(lines) < 80
    assert any('status="499"' in line for line in lines)
    assert any('status="5xx"' in line for line in lines)


def test_rows_and_readings_are_timed_by_tenant() -> None:
    metrics = Metrics(_config())
    metrics.verdicts.count(_verdict("known"), "acme/research")
    metrics.verdicts.time_reading(["secrets", "injection"], "acme/research", 0.002)
    series = _series(metrics)
    row = 'inference_guard_row_seconds_sum{policy="p",tenant="acme/research"} 0.001'
    assert row in series
    for guard in ("secrets", "injection"):
        labels, name = f'guard="{guard}"', "inference_guard_guard_seconds"
        assert f'{name}_sum{{{labels},tenant="acme/research"}} 0.002' in series
        for bound, count in (("0.001", 0.0), ("0.003", 1.0)):
            bucket = f'{name}_bucket{{{labels},le="{bound}",tenant="acme/research"}} {count}'
            assert bucket in series


def test_tenants_without_end_are_one_series() -> None:
    metrics = Metrics(_config())
    for tenant in range(MOST_PAIRS + 50):
        metrics.verdicts.time_reading(["secrets"], f"t-{tenant}", 0.001)
    counts = [
        line for line in _series(metrics) if line.startswith("inference_guard_guard_seconds_count")
    ]
    assert len(counts) == MOST_PAIRS + 1
    assert 'inference_guard_guard_seconds_count{guard="secrets",tenant="other"} 50.0' in counts
