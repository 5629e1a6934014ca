from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.artifact import Artifact, ArtifactMeta

MakeArtifact = Callable[..., Artifact]

HASH = "sha256:" + "a" * 64

GOOD = f"""
[server]
default_policy = "strict"
audit_log = "logs/audit.jsonl"
request_timeout_s = 30

[[models]]
name = "smollm2"
source = "./models/smollm2"

[[guards]]
name = "hp"
artifact = "hp.safetensors"
threshold = 0.7

[policies.strict]
guards = ["hp"]
on_error = "open"

[[keys]]
hash = "{HASH}"
tenant = "acme"
policies = ["none"]
"""


def describe_model(folder: Path, *, layers: int = 4, width: int = 8) -> None:
    """The file that describes a language model, as large as the artifacts' unless said."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"num_hidden_layers": layers, "hidden_size": width}), "utf-8"
    )


@pytest.fixture
def make_artifact() -> MakeArtifact:
    """Build a small sound artifact; keyword arguments replace fields of its metadata."""

    def make(tensors: dict[str, Any] | None = None, **fields: Any) -> Artifact:
        meta = {
            "method": "steer",
            "concept": "character/harry-potter",
            "created": "2026-01-31",
            "model": {
                "name": "tiny",
                "architecture": "LlamaForCausalLM",
                "fingerprint": "f" * 64,
                "layers": 4,
                "width": 8,
            },
            "seams": ["hidden"],
            "settings": {
                **{"threshold": 0.5, "strength": 1.0, "recheck": 0.25, "schedule": [1.0]},
                **{"sense_layers": [0, 1], "act_layers": [2], "pool": 1, "rest": 1},
            },
        }
        default = {
            "directions": np.arange(8, dtype=np.float32)[None],
            "gates": np.ones((2, 8), "f4"),
        }
        return Artifact(
            ArtifactMeta.model_validate(meta | fields), default if tensors is None else tensors
        )

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("GUARD_CACHE", str(folder))
    return folder


@pytest.fixture
def plain_terminal(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A wide terminal without colours, an empty cache, and errors without tracebacks."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("GUARD_DEBUG", raising=False)


@pytest.fixture
def good(tmp_path: Path, make_artifact: MakeArtifact) -> Path:
    """A valid configuration with its artifact, and the description of its model."""
    make_artifact().save(tmp_path / "hp.safetensors")
    describe_model(tmp_path / "models" / "smollm2")
    (tmp_path / "config.toml").write_text(GOOD, "utf-8")
    return tmp_path / "config.toml"
