"""From an artifact's tensors and settings to a guard, and their faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from steering.methods import method_named
from steering.methods.fitted import FittedGuard
from steering.methods.steer import SteerGuards, loaded

WIDTH = 8


def stacked(tensors: dict[str, Any], settings: dict[str, Any]) -> SteerGuards:
    guards: SteerGuards = method_named("steer").stacked([FittedGuard("g", tensors, settings)])
    return guards


def sound() -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    tensors = {
        "gates": rng.standard_normal((2, WIDTH)).astype("f4"),
        "directions": rng.standard_normal((1, WIDTH)).astype("f4"),
    }
    settings = {
        "sense_layers": [1, 2],
        "act_layers": [3],
        "schedule": [1.0, 0.5],
        "pool": 3,
        "rest": 2,
        "threshold": 0.25,
        "strength": 1.5,
        "recheck": 0.75,
    }
    return tensors, settings


def test_sound_guard_is_loaded_as_fitted() -> None:
    tensors, settings = sound()
    guard = loaded(FittedGuard("potter", tensors, settings))
    assert (guard.name, guard.sense_layers, guard.act_layers) == ("potter", (1, 2), (3,))
    assert (guard.pool, guard.rest, guard.width) == (3, 2, WIDTH)
    assert torch.equal(guard.gates, torch.tensor(tensors["gates"]))
    d = torch.tensor(tensors["directions"])
    assert torch.equal(guard.directions, torch.stack([d, 0.5 * d]))


def test_thresholds_are_read_with_checks() -> None:
    fitted = FittedGuard("g", *sound())
    assert fitted.number("threshold") == 0.25 and fitted.optional_number("recheck") == 0.75
    none = FittedGuard("g", {}, {"recheck": None, "strength": float("nan"), "threshold": "high"})
    assert none.optional_number("recheck") is None
    for key in ("strength", "threshold"):
        with pytest.raises(ValueError, match=f"{key} must be a finite number"):
            none.number(key)


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown method 'melt'.*steer.*cgce"):
        method_named("melt")


@pytest.mark.parametrize("missing", ["gates", "directions"])
def test_missing_tensor_is_named(missing: str) -> None:
    tensors, settings = sound()
    del tensors[missing]
    with pytest.raises(ValueError, match=missing):
        stacked(tensors, settings)


@pytest.mark.parametrize(
    "missing", [key for key in sound()[1] if key not in ("threshold", "strength", "recheck")]
)
def test_missing_setting_is_named(missing: str) -> None:
    tensors, settings = sound()
    del settings[missing]
    with pytest.raises(ValueError, match=missing):
        stacked(tensors, settings)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sense_layers": []}, r"gates must be \[sense layers, width\]"),
        ({"act_layers": []}, "directions must be"),
        ({"sense_layers": [1, 1]}, "must list each of its layers once"),
        ({"sense_layers": [1]}, r"gates must be \[sense layers, width\]"),
        ({"sense_layers": [1, 2.5]}, "sense_layers must be a whole number, not 2.5"),
        ({"act_layers": [2, 3]}, "directions must be"),
        ({"act_layers": [1]}, "act at a layer before its last sensing layer"),
        ({"schedule": []}, "at least one step"),
        ({"schedule": 1.0}, "schedule must be a list"),
        ({"pool": 0}, "pool must be 1 to 4096, not 0"),
        ({"pool": 2.5}, "pool must be a whole number"),
        ({"rest": 0}, r"rest must be 1 to 1e\+06, not 0"),
        ({"schedule": [0.0, 0.0]}, "has no share"),
        ({"threshold": 1e300}, r"threshold must be -1e\+09 to 1e\+09, not 1e\+300"),
        ({"recheck": -1e300}, "recheck must be"),
        ({"strength": 0.0}, "strength must be above 0 and at most 10"),
        ({"strength": 11.0}, "strength must be above 0 and at most 10"),
        ({"sense_layers": [-1, 1]}, "sense_layers must be 0 to"),
        ({"pool": None}, "pool must be a finite number"),
        ({"sense_layers": None}, "sense_layers must be a list"),
        ({"schedule": [float("nan")]}, "finite"),
    ],
)
def test_invalid_settings_are_refused(change: dict[str, Any], match: str) -> None:
    tensors, settings = sound()
    with pytest.raises(ValueError, match=match):
        stacked(tensors, settings | change)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("gates", ()),
        ("gates", (WIDTH,)),
        ("gates", (2, 1, WIDTH)),
        ("gates", (2, WIDTH + 1)),
        ("directions", ()),
        ("directions", (1, WIDTH - 1)),
        ("directions", (1, 1, 1, WIDTH)),
    ],
)
def test_tensors_of_a_wrong_shape(name: str, shape: tuple[int, ...]) -> None:
    tensors, settings = sound()
    tensors[name] = np.zeros(shape, "f4")
    with pytest.raises(ValueError, match="must (be|have)"):
        stacked(tensors, settings)
