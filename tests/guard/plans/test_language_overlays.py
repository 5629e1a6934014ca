"""Overlays of linear layers in policies: what they must fit, and who cannot run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import guard
from guard.artifact import Artifact, ArtifactMeta
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.errors import GuardFailed
from guard.plans.language import LanguagePlans, ServedModel
from guard.plans.revision import Revision
from steering.engines.transformers.engine import TransformersEngine
from steering.fingerprint import fingerprint
from tests.steering.engines.driver import ids, serve, start
from tests.steering.tiny import LAYERS, WIDTH, prompt, tiny_model

UP = "model.layers.0.mlp.up_proj"
Save = Callable[..., Path]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture
def save(tmp_path: Path, model: Any) -> Save:
    """Save an overlay of `path` for the tiny model; `tensors` replace its own."""

    def save(path: str = UP, rank: int = 4, groups: Any = None, **settings: Any) -> Path:
        rng = np.random.default_rng(0)
        meta = ArtifactMeta.model_validate(
            {
                "method": "language-overlay",
                "concept": "topic/t",
                "created": "2026-01-31",
                "model": {
                    "name": "tiny",
                    "architecture": "llama",
                    "fingerprint": fingerprint(model),
                    "layers": LAYERS,
                    "width": WIDTH,
                },
                "seams": ["linear"],
                "settings": {
                    "sense_layers": [1],
                    "pool": 2,
                    "threshold": -1e3,
                    "strength": 1.0,
                    "rereads": True,
                    "groups": groups or {"0": [path]},
                }
                | settings,
            }
        )
        tensors = {
            "gates": rng.normal(size=(1, WIDTH)),
            "reads.0": rng.normal(size=(rank, WIDTH)),
            f"writes.{path}": rng.normal(size=(rank, 64)),
        }
        out = tmp_path / "overlay.safetensors"
        Artifact(meta, {name: values.astype("f4") for name, values in tensors.items()}).save(out)
        return out

    return save


def config_of(artifact: Path, **more: Any) -> Config:
    setting = GuardConfig(name="g", artifact=artifact, **more)
    return Config(guards=(setting,), policies={"p": PolicyConfig(guards=("g",))})


def test_an_overlay_acts_on_the_rows_of_its_policy(model: Any, save: Save) -> None:
    plans = LanguagePlans(config_of(save()), model, name="tiny")
    plan = plans["p"]
    assert not plan.refuses and [row.acts for row in plan.rows()] == [True]
    engine = TransformersEngine(model, plans.bank, capacity=2)
    tokens = prompt(9, 1)
    rows, readings = serve(engine, [start(tokens, plan.rows()), start(tokens)])
    engine.close()
    assert ids(rows)[0] != ids(rows)[1]
    verdict = plan.verdict(readings[0], request_id="r", model="tiny", elapsed_ms=1.0)
    assert verdict.outcome == "overlaid" and verdict.guards[0].action == "overlay"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"path": "model.layers.9.mlp.up_proj"}, "no linear layer in this model's decoder layers"),
        ({"path": "lm_head"}, "no linear layer in this model's decoder layers"),
        ({"path": "model.layers.0.mlp.down_proj"}, "is 64 x 32, the layer is 32 x 64"),
        ({"rank": 33}, "rank 33, more than the layer's 32"),
        ({"groups": {"0": [UP, UP]}}, "two overlays"),
        ({"groups": {"1": [UP]}}, "no tensor 'reads.1'"),
        ({"rereads": "yes"}, "must be true or false"),
        ({"sense_layers": [7]}, "layers .7. do not exist"),
        ({"recheck": 0.5}, "an overlay of linear layers decides on the prompt alone"),
    ],
)
def test_an_overlay_that_does_not_fit_breaks_its_policy(
    model: Any, save: Save, fault: dict[str, Any], reason: str
) -> None:
    plan = LanguagePlans(config_of(save(**fault)), model, name="tiny")["p"]
    assert plan.refuses
    with pytest.raises(GuardFailed, match=reason):
        plan.require_whole()


def test_it_has_no_threshold_of_generated_tokens(model: Any, save: Save) -> None:
    plan = LanguagePlans(config_of(save(), recheck=0.5), model, name="tiny")["p"]
    with pytest.raises(GuardFailed, match="decides on the prompt alone: leave out recheck"):
        plan.require_whole()


def test_an_answer_under_it_alone_is_not_held_back(model: Any, save: Save) -> None:
    assert LanguagePlans(config_of(save()), model, name="tiny")["p"].rewinds == "never"


def test_vllm_refuses_it(model: Any, save: Save) -> None:
    served = ServedModel(fingerprint(model), LAYERS, WIDTH, "cpu")
    entry = Revision(config_of(save()), served, "tiny").entries["p"]
    assert entry.plan.refuses
    with pytest.raises(GuardFailed, match="overlays linear layers, which vLLM does not run"):
        entry.plan.require_whole()


def test_attached_use_refuses_it(model: Any, save: Save) -> None:
    with (
        pytest.raises(GuardFailed, match="guard.attached does not know overlays of linear layers"),
        guard.attached(model, "p", config=config_of(save())),
    ):
        raise AssertionError("attached")
