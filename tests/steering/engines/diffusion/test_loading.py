"""Pipelines are loaded from complete safetensors; the error of any other is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import family_of
from steering.engines.diffusion.loading import load_pipeline
from tests.steering.engines.diffusion import tiny

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    pipeline = tiny.built("emoji").pipeline
    pipeline.save_pretrained(folder)
    # diffusers writes only the first part of a module's path
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["steering.engines.diffusion.patch_autoencoder", "PatchAutoencoder"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "pipeline"))


def generated(pipeline: Any) -> Any:
    engine = DiffusionEngine(family_of(pipeline), capacity=1)
    engine.start([ImageStart("a knife", seed=1, steps=2, guidance=3.0)])
    while not engine.step():
        pass
    return engine.images([0])


def dtypes(pipeline: Any) -> dict[str, set[torch.dtype]]:
    parts = {n: p for n, p in pipeline.components.items() if isinstance(p, nn.Module)}
    return {name: {p.dtype for p in part.parameters()} for name, part in parts.items()}


def test_a_pipeline_is_loaded_as_it_was_saved(folder: Path) -> None:
    pipeline = load_pipeline(str(folder), device="cpu")
    original = tiny.built("emoji").pipeline
    assert tiny.weights_hash(pipeline) == tiny.weights_hash(original)
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    assert len(parts) == 3 and not any(part.training for part in parts)
    assert np.array_equal(generated(pipeline), generated(original))


def test_several_encoders_and_transformers_are_loaded(tmp_path: Path) -> None:
    original = tiny.built("stable diffusion 3 without t5").pipeline
    original.save_pretrained(tmp_path)
    pipeline = load_pipeline(str(tmp_path), device="cpu")
    assert tiny.weights_hash(pipeline) == tiny.weights_hash(original)
    assert pipeline.text_encoder_3 is None


def test_the_autoencoder_stays_in_full_precision(folder: Path) -> None:
    halved = load_pipeline(str(folder), dtype="bfloat16", device="cpu")
    half, full = {torch.bfloat16}, {torch.float32}
    assert dtypes(halved) == {"text_encoder": half, "unet": half, "vae": full}
    assert generated(halved).shape == (1, 32, 32, 3)
    auto = load_pipeline(str(folder), dtype="auto", device="cpu")
    assert set().union(*dtypes(auto).values()) == full


def test_pickled_weights_are_not_read(folder: Path) -> None:
    weights = load_file(folder / UNET)
    (folder / UNET).unlink()
    torch.save(weights, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded: ") as caught:
        load_pipeline(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "part"),
    [
        (UNET, "unet"),
        ("vae/diffusion_pytorch_model.safetensors", "vae"),
        ("text_encoder/model.safetensors", "text_encoder"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(folder: Path, file: str, part: str) -> None:
    weights = load_file(folder / file)
    name = sorted(weights)[3]
    del weights[name]
    save_file(weights, folder / file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"1 weights of {part} are missing, {name} the first"):
        load_pipeline(str(folder), device="cpu")


@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "tokenizer/tokenizer.json", UNET]
)
def test_a_damaged_folder_is_refused_in_one_line(folder: Path, file: str) -> None:
    (folder / file).write_text("{")
    with pytest.raises(ValueError, match="cannot be loaded: ") as caught:
        load_pipeline(str(folder), device="cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entry", [["diffusers", "NoSuchModel"], ["no_such_library", "Model"], ["os", "system"]]
)
def test_an_index_that_names_no_model_is_refused(folder: Path, entry: list[str]) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = entry
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="cannot be loaded: "):
        load_pipeline(str(folder), device="cpu")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone cannot be loaded: "):
        load_pipeline(str(tmp_path / "gone"), device="cpu")
