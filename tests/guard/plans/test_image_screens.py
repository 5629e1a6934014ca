"""Policies resolved to screens of images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from guard.commands.configuration.soundness import findings
from guard.config.schema import load_config
from guard.errors import ConfigError, GuardFailed
from guard.plans.screens import TextPlans
from tests.classifiers.images import tiny_encoder

BASE = """
[[guards]]
name = "red"
artifact = "red.safetensors"
[[patterns]]
name = "secrets"
source = "secrets"
[policies.p]
guards = ["red"{others}]
action = "{action}"
[policies.p.screen]
{screen}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUARD_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "cache" / "models" / "colours"
    tiny_encoder.red_screen(tiny_encoder.write(model), tmp_path / "red.safetensors")
    return model


def _written(folder: Path, screen: str = "", action: str = "block", others: str = "") -> Path:
    path = folder / "config.toml"
    path.write_text(BASE.format(screen=screen, action=action, others=others))
    return path


def _plans(folder: Path, *options: str, **named: Any) -> TextPlans:
    return TextPlans(load_config(_written(folder, *options, **named)))


def test_a_screen_of_images_has_its_action_and_places(tmp_path: Path) -> None:
    screen = 'look = ["user", "response"]\nactions = { red = "flag" }'
    plan = _plans(tmp_path, screen)["p"]
    (red,) = plan.images
    assert (red.name, red.action, red.encoder, red.threshold) == ("red", "flag", "colours", 0.5)
    assert plan.active and not plan.screens
    assert plan.reads_images("response") and not plan.reads_images("system")
    plan.require_whole()


@pytest.mark.parametrize("action", ["steer", "refine"])
def test_an_action_of_models_guards_blocks(tmp_path: Path, action: str) -> None:
    (red,) = _plans(tmp_path, action=action)["p"].images
    assert red.action == "block"


def test_a_configured_threshold_is_the_one_that_counts(tmp_path: Path) -> None:
    path = _written(tmp_path)
    path.write_text(
        path.read_text().replace("red.safetensors", 'red.safetensors"\nthreshold = 0.9 #')
    )
    path.write_text(path.read_text().replace('#"', ""))
    (red,) = TextPlans(load_config(path))["p"].images
    assert red.threshold == 0.9


@pytest.mark.parametrize("fault", ["absent", "altered", "another"])
def test_without_its_encoder_the_policy_is_refused(tmp_path: Path, cache: Path, fault: str) -> None:
    if fault == "absent":
        (cache / "guard-model.json").unlink()
    elif fault == "altered":
        (cache / "image_encoder.onnx").write_bytes(b"x")
    else:
        tiny_encoder.write(cache, mean=(0.0, 0.0, 0.0))
    plan = _plans(tmp_path)["p"]
    expected = {"absent": "guard models add colours", "altered": "altered", "another": "fitted on"}
    with pytest.raises(GuardFailed, match=expected[fault]):
        plan.require_whole()
    found = findings(load_config(tmp_path / "config.toml"))
    assert any(expected[fault] in line for line in [*found.warnings, *found.problems])


def test_text_in_images_needs_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    plan = _plans(tmp_path, "ocr = true", others=', "secrets"')["p"]
    with pytest.raises(GuardFailed, match=r"inference-guard\[ocr\]"):
        plan.require_whole()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": "redact"}, "red reads images"),
        ({"screen": 'actions = { red = "route" }\nmodel = "m"'}, "red reads images"),
        ({"screen": "ocr = true"}, "it has none"),
        ({"screen": 'actions = { secrets = "flag" }'}, "is no guard of this policy"),
    ],
)
def test_what_a_screen_of_images_cannot_do_is_told(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(_written(tmp_path, **options))
    assert any(message in problem for problem in caught.value.problems)


def test_a_strength_is_not_for_it(tmp_path: Path) -> None:
    path = _written(tmp_path)
    path.write_text(path.read_text().replace('name = "red"', 'name = "red"\nstrength = 0.5'))
    with pytest.raises(ConfigError, match="is not for screens"):
        load_config(path)
