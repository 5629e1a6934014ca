"""A pipeline of the project's own classes is handed out without an import of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import guard
from guard.errors import ModelError
from tests.steering.engines.diffusion import tiny

PROGRAM = """
import sys
import guard
assert "diffusers" not in sys.modules
pipeline = guard.load_pipeline(sys.argv[1], device="cpu")
print(type(pipeline).__name__, type(pipeline.vae).__name__)
"""


def test_a_pipeline_by_its_folder(tmp_path: Path) -> None:
    tiny.built("emoji").pipeline.save_pretrained(tmp_path)
    # diffusers writes only the first part of a module's path
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["vae"] = ["steering.engines.diffusion.patch_autoencoder", "PatchAutoencoder"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True, text=True, timeout=120, cwd=Path.cwd(), check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["StableDiffusionPipeline", "PatchAutoencoder"], done.stderr


def test_what_is_no_pipeline_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(
        ModelError, match="is a language model, and what is needed here is an image"
    ):
        guard.load_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded"):
        guard.load_pipeline(str(tmp_path))
