from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.artifact import Artifact, ArtifactMeta

MakeArtifact = Callable[..., Artifact]


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
            "settings": {"threshold": 0.5, "strength": 1.0, "recheck": False, "layers": [1, 2]},
        }
        default = {"direction": np.arange(8, dtype=np.float32), "gate": np.ones((2, 8), "f4")}
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
