"""Figures of throughput, from rounds and counts as the engines give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from benchmarks.host_syncs import Syncs
from benchmarks.vllm_engine import Engine, Options
from benchmarks.vllm_throughput import Side, compare, plan
from tests.benchmarks.test_vllm_throughput import FakeEngine
from tests.gpu.parts.throughput import LOADED, TRAFFIC, figures, syncs
from tests.gpu.report import Figure
from tests.gpu.settings import Settings

SETTINGS = Settings("cuda", False, 4, None, "emoji", "guards", "minilm", "work")
OPTIONS = Options("model", Path("config.toml"), 128, 96, False, 1, 4096)


class CountedEngine(FakeEngine):
    """One whose forwards have `syncs`."""

    def __init__(self, syncs: Syncs, places: Mapping[str, int] | None = None) -> None:
        super().__init__(1.0)
        self._syncs, self._places = syncs, places or {}

    def syncs(self, policies: Sequence[str]) -> tuple[Syncs, Mapping[str, int]]:
        return self._syncs, self._places


def test_every_number_of_guards_is_measured() -> None:
    engines, sides = plan(LOADED, OPTIONS.requests, TRAFFIC)
    assert list(engines) == ["0", "1 silent-recheck", "1 fires-recheck", "256", "10000"]
    assert [side.name for side in sides] == [
        "bare",
        "0 idle",
        "10000 idle",
        *(f"{n} {kind}-recheck" for n in (1, 256, 10000) for kind in ("silent", "fires")),
    ]
    assert next(side for side in sides if side.name == "0 idle") == Side("0 idle", "0")
    # as many different guards are in use as half of the requests can carry
    assert len(sides[-1].policies) == 64


def _measured(seconds: float, settings: Settings = SETTINGS) -> dict[str, Figure]:
    sides = [Side("bare", "bare"), Side("0 idle", "0"), Side("1 silent-recheck", "1", ("p",))]
    engines = {
        "bare": FakeEngine(1.0),
        "0": FakeEngine(1.0),
        "1": FakeEngine(seconds),
    }
    result = compare({n: cast("Engine", each) for n, each in engines.items()}, sides, 3)
    found: dict[str, Figure] = {}
    options = replace(OPTIONS, requests=2)
    figures(result["sides"], options, settings, lambda f: found.update({f.name: f}))
    return found


def test_ratios_have_the_targets_of_idle_and_guarded_traffic() -> None:
    found = _measured(1 / 0.98)
    assert found["bare: throughput"].value == 2 * 96 / 1.0
    idle, guarded = found["0 idle: of bare"], found["1 silent-recheck: of bare"]
    assert idle.target == 0.99 and idle.passed
    assert guarded.target == 0.97 and guarded.value == pytest.approx(0.98) and guarded.passed
    assert not _measured(1 / 0.96)["1 silent-recheck: of bare"].passed
    # the fake engines say that a quarter of the time is the plugin's own
    own = found["0 idle: own CPU time"]
    assert (own.value, own.target, own.passed) == (0.25, 0.001, False)
    assert found["0 idle: own CPU time of a forward"].value == 500_000


def test_a_smoke_run_has_no_targets_of_speed() -> None:
    found = _measured(2.0, replace(SETTINGS, smoke=True))
    assert all(figure.passed is None for figure in found.values())


def test_own_syncs_are_those_beyond_the_bare_engine() -> None:
    engines = {
        "bare": CountedEngine(Syncs(3.0, 1.0, 0.0)),
        "0": CountedEngine(Syncs(3.02, 1.0, 0.0)),
        "1": CountedEngine(Syncs(5.0, 2.0, 1.0), {"steering/hidden/rows.py:7": 12}),
    }
    sides = [Side("bare", "bare"), Side("0 idle", "0"), Side("1 silent", "1", ("p",))]
    found: dict[str, Figure] = {}
    by_name = {name: cast("Engine", engine) for name, engine in engines.items()}
    syncs(by_name, sides, lambda figure: found.update({figure.name: figure}))
    assert found["bare: waits for the GPU"].value == 3.0
    idle = found["0 idle: own waits for the GPU"]
    assert idle.value == pytest.approx(0.02) and idle.passed
    guarded = found["1 silent: own waits for the GPU"]
    assert guarded.value == 2.0 and guarded.passed is False
    assert guarded.note == "steering/hidden/rows.py:7 12x"
    assert found["1 silent: own scalars read"].value == 1.0
