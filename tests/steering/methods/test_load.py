"""From an artifact's tensors and settings to a guard, and what does not hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from steering.methods import load_guard

WIDTH, DEPTH = 8, 4


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
    fitted = load_guard("steer", "potter", tensors, settings, DEPTH)
    guard = fitted.tensors
    assert (guard.name, guard.sense_layers, guard.act_layers) == ("potter", (1, 2), (3,))
    assert (guard.pool, guard.rest, guard.width) == (3, 2, WIDTH)
    assert torch.equal(guard.gates, torch.tensor(tensors["gates"]))
    d = torch.tensor(tensors["directions"])
    assert torch.equal(guard.directions, torch.stack([d, 0.5 * d]))
    assert (fitted.threshold, fitted.strength, fitted.recheck) == (0.25, 1.5, 0.75)


def test_no_recheck_threshold_means_none() -> None:
    tensors, settings = sound()
    assert load_guard("steer", "g", tensors, settings | {"recheck": None}, DEPTH).recheck is None


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown method 'melt'.*steer"):
        load_guard("melt", "g", *sound(), DEPTH)


@pytest.mark.parametrize("missing", ["gates", "directions"])
def test_missing_tensor_is_named(missing: str) -> None:
    tensors, settings = sound()
    del tensors[missing]
    with pytest.raises(ValueError, match=missing):
        load_guard("steer", "g", tensors, settings, DEPTH)


@pytest.mark.parametrize("missing", list(sound()[1]))
def test_missing_setting_is_named(missing: str) -> None:
    tensors, settings = sound()
    del settings[missing]
    with pytest.raises(ValueError, match=missing):
        load_guard("steer", "g", tensors, settings, DEPTH)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sense_layers": [1, 9], "act_layers": [9]}, r"layers \[9, 9\] do not exist"),
        ({"sense_layers": [-1, 2]}, r"layers \[-1\] do not exist"),
        ({"sense_layers": []}, "needs layers"),
        ({"act_layers": []}, "needs layers"),
        ({"sense_layers": [1, 1]}, "each once"),
        ({"sense_layers": [1]}, r"gates must be \[sense layers, width\]"),
        ({"act_layers": [2, 3]}, "directions must be"),
        ({"act_layers": [1]}, "act before it has sensed"),
        ({"schedule": []}, "at least one step"),
        ({"pool": 0}, "pool must be at least 1"),
        ({"rest": 0}, "rest must be at least 1"),
        ({"pool": None}, "a steering guard needs"),
        ({"sense_layers": None}, "a steering guard needs"),
        ({"threshold": "nan"}, "finite"),
        ({"threshold": "high"}, "high"),
        ({"strength": "inf"}, "finite"),
        ({"recheck": "nan"}, "finite"),
        ({"schedule": ["nan"]}, "finite"),
    ],
)
def test_settings_that_do_not_hold(change: dict[str, Any], match: str) -> None:
    tensors, settings = sound()
    with pytest.raises(ValueError, match=match):
        load_guard("steer", "g", tensors, settings | change, DEPTH)


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
    with pytest.raises(ValueError, match="must be"):
        load_guard("steer", "g", tensors, settings, DEPTH)
