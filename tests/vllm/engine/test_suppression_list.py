"""A suppression list inside vLLM: verdicts with their entries are those of the transformers engine,
eager and in captured graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from guard.artifact import Artifact, ArtifactMeta
from guard.config.schema import load_config
from guard.plans.language import LanguagePlans
from steering.engines.transformers.engine import TransformersEngine
from steering.fingerprint import checkpoint_fingerprint
from steering.hidden.bank import HiddenBank
from steering.hidden.rows import RowGuard
from steering.methods.suppression_list import SuppressionList, SuppressionLists
from tests.steering.engines.driver import ids, serve, start
from tests.steering.tiny import LAYERS, prompt
from tests.vllm.checkpoint import CONFIG, WIDTH, model, save
from tests.vllm.driver import run

ENTRIES, DIMENSIONS = 37, 8
CONFIG_OF_LIST = """
[[guards]]
name = "people"
artifact = "people.safetensors"
[policies.people]
guards = ["people", "late"]
"""


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("list")
    save(made)
    served, rng = model(), np.random.default_rng(2)
    with torch.inference_mode():
        states = served(torch.tensor([prompt(40, seed=1)]), output_hidden_states=True).hidden_states
    # such that sums over both layers are about 1
    unit = 1 / float(torch.stack(states[1:3]).std()) / np.sqrt(2 * WIDTH)
    tensors = {
        "gates": 0.2 * unit * rng.normal(size=(ENTRIES, 2, WIDTH)),
        "bias": 0.1 * rng.normal(size=ENTRIES),
        "centres": rng.normal(size=(ENTRIES, DIMENSIONS)),
        "projection": unit * rng.normal(size=(2, WIDTH, DIMENSIONS)),
        "directions": 100 * rng.normal(size=(1, WIDTH)),
    }
    tensors = {name: values.astype("f4") for name, values in tensors.items()}
    settings: dict[str, Any] = {
        "sense_layers": [0, 1],
        "act_layers": [2],
        "schedule": [1.0, 0.5],
        "rest": 2,
        "radius": 100.0,
        "strength": 2.0,
        "entries": [f"e-{i}" for i in range(ENTRIES)],
    }
    level = float(np.median(_scores(served, tensors, settings)))
    assert 0.2 < level < 1.9
    meta = ArtifactMeta.model_validate(
        {
            "method": "suppression-list",
            "concept": "names/people",
            "created": "2026-01-31",
            "model": {
                "name": "tiny",
                "architecture": "LlamaForCausalLM",
                "fingerprint": checkpoint_fingerprint(made / "model"),
                "layers": LAYERS,
                "width": WIDTH,
            },
            "seams": ["hidden"],
            "settings": settings | {"threshold": level, "recheck": min(level + 0.2, 1.9)},
        }
    )
    Artifact(meta, tensors).save(made / "people.safetensors")
    (made / "config.toml").write_text(CONFIG + CONFIG_OF_LIST, "utf-8")
    return made


def _scores(served: Any, tensors: Mapping[str, Any], settings: Mapping[str, Any]) -> list[float]:
    parts = {name: torch.from_numpy(values) for name, values in tensors.items()}
    parts["directions"] = parts["directions"][None]
    fitted = SuppressionList("g", (0, 1), act_layers=(2,), rest=2, radius=100.0, **parts)
    engine = TransformersEngine(served, HiddenBank([SuppressionLists([fitted])]), capacity=20)
    watched = [RowGuard("g", threshold=1e9, strength=1.0)]
    starts = [start(prompt(5 + 3 * i, seed=i), watched) for i in range(20)]
    _, readings = serve(engine, starts, tokens=1)
    engine.close()
    return [own["g"].score for own in readings]


def test_verdicts_and_tokens_are_those_of_the_transformers_engine(
    listed: Path, way: Mapping[str, str]
) -> None:
    asked = [
        {
            "prompt": prompt(5 + i, seed=500 + i),
            "tokens": 8,
            "policy": ("people", "none", "firm")[i % 3],
            "at": i // 4,
        }
        for i in range(36)
    ]
    came = run(listed, asked, **way)["phases"][0]
    served = model()
    plans = LanguagePlans(load_config(listed / "config.toml"), served, name="tiny")
    engine = TransformersEngine(served, plans.bank, capacity=1)
    entries = set()
    for own, one in zip(asked, came, strict=True):
        plan = plans[own["policy"]]
        (out,), (readings,) = serve(
            engine, [start(own["prompt"], plan.rows())], tokens=own["tokens"]
        )
        assert one["tokens"] == ids([out]), own
        expected = plan.verdict(readings, request_id="", model="", elapsed_ms=0.0)
        told = {guard["guard"]: guard for guard in one["guard"]["guards"]}
        for guard in expected.guards:
            assert told[guard.guard]["position"] == guard.position
            if guard.guard == "people":
                assert told["people"]["concept"] == guard.concept
                assert told["people"]["score"] == pytest.approx(guard.score, abs=0.01)
                entries.add(guard.concept)
    assert "names/people" in entries and len(entries) > 3
    engine.close()
