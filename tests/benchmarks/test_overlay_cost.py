"""The cost benchmark of overlays: each kind of batch beside the one without guards."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from benchmarks.image_batches import copies
from benchmarks.overlay_cost import TARGETS, cut, measure
from guard.artifact import Artifact
from tests.server.tiny_pipeline import save_guards, save_pipeline


def test_every_kind_of_batch_is_measured(tmp_path: Path) -> None:
    family = save_pipeline(tmp_path / "pipeline")
    save_guards(tmp_path, family)
    artifact = Artifact.load(tmp_path / "overlay.safetensors")
    arguments = Namespace(prompt="a cat", steps=1, guidance=3.0, batch=2, rounds=2, rank=1)
    arguments.processor_time = True
    result = measure(family, artifact, arguments)
    assert result["bare"]["ratio"] == 1.0
    assert {*TARGETS} < {*result} and all(part["seconds"] > 0 for part in result.values())


def test_an_overlay_is_cut_to_its_first_directions(tmp_path: Path) -> None:
    save_guards(tmp_path, save_pipeline(tmp_path / "pipeline"))
    (whole,) = copies(Artifact.load(tmp_path / "overlay.safetensors"), 1)
    short = cut(whole, 1)
    for name, values in whole.tensors.items():
        factor = name.startswith(("reads.", "writes."))
        assert len(short.tensors[name]) == (1 if factor else len(values))
