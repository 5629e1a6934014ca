from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from guard.artifact import Artifact
from guard.errors import ArtifactError
from guard.policies.effective import PolicyFile
from tests.guard.policies.test_decisions import POLICIES, meta


def test_a_change_asks_no_store_of_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {name: np.zeros((4, 8), "f4") for name in ("gates", "directions")}
    Artifact(meta(), tensors).save(tmp_path / "g.safetensors")
    asked: list[str] = []

    def fetched(url: str, digest: str | None = None) -> Path:
        asked.append(url)
        if len(asked) > 1:
            raise ArtifactError("the store is down")
        return tmp_path / "g.safetensors"

    monkeypatch.setattr("guard.config.artifact_paths.fetched", fetched)
    path = tmp_path / "config.toml"
    path.write_text(POLICIES.replace('"g.safetensors"', '"s3://bucket/g.safetensors"'))
    policies = PolicyFile(path)
    config = policies.with_policies({"p": {"guards": ["g"], "thresholds": {"g": 0.6}}}, "p")
    assert config.guards == policies.config.guards
    assert config.policies["p"].thresholds == {"g": 0.6} and len(asked) == 1
