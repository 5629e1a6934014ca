"""The cost benchmark measures every part beside the picture of its own round."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.picture_cost import CONCEPTS, measure
from guard.artifact import Artifact
from tests.server.tiny_pipeline import save_guards, save_pipeline


def _arguments(prompt: str) -> Namespace:
    return Namespace(
        prompt=prompt, silent="a cat", steps=1, guidance=3.0, batch=1, rounds=2, json=True
    )


def test_every_part_is_measured(tmp_path: Path) -> None:
    family = save_pipeline(tmp_path / "pipeline")
    save_guards(tmp_path, family)
    artifact = Artifact.load(tmp_path / "knife.safetensors")
    result = measure(family, artifact, _arguments("a knife"))
    assert result["concepts"] == CONCEPTS
    assert result["picture"]["ratio"] == 1.0
    assert result["detection"]["seconds"] > 0
    assert result["steps_taken"] >= 1
    with pytest.raises(SystemExit, match="does not fire"):
        measure(family, artifact, _arguments("a cat"))
