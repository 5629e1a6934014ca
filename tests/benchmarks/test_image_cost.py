"""The cost benchmark measures every part relative to the image of the same round."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.image_cost import CONCEPTS, measure
from guard.artifact import Artifact
from tests.guard.toy_images import save_drawn_latents
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
    assert "looking" not in result
    with pytest.raises(SystemExit, match="does not fire"):
        measure(family, artifact, _arguments("a cat"))


def test_the_inspection_of_the_finished_image_is_measured_with_a_latents_guard(
    tmp_path: Path,
) -> None:
    family = save_pipeline(tmp_path / "pipeline")
    save_guards(tmp_path, family)
    save_drawn_latents(tmp_path / "look.safetensors", family)
    artifact, latents = (Artifact.load(tmp_path / f"{n}.safetensors") for n in ("knife", "look"))
    result = measure(family, artifact, _arguments("a knife"), latents)
    assert result["looking"]["seconds"] > 0 and result["looking"]["ratio"] > 0
