"""`guard import` on a tiny pipeline, from files that it or its libraries have written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from guard.artifact import Artifact
from guard.cli import app
from guard.config.schema import Config
from guard.plans.images import ImagePlans
from steering.engines.diffusion.families import Family
from tests.guard.commands.fit.images.concept_fits import CONCEPT
from tests.server.tiny_pipeline import save_pipeline

QUICK = ("--count", "100", "--fpr", "0.5", "--near-fpr", "0.5", "--prompts", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Family]:
    folder = tmp_path_factory.mktemp("model")
    return folder, save_pipeline(folder)


def run(source: Path, folder: Path, base: Path | str, *options: str) -> Result:
    (folder / "knife.json").write_text(json.dumps(CONCEPT))
    files = ["--concept-file", str(folder / "knife.json"), "--out", str(folder / "g.safetensors")]
    return CliRunner().invoke(app, ["import", str(source), "--base", str(base), *files, *options])


def eraser(folder: Path, family: Family) -> Path:
    """Weights of some layers, changed, and a bias."""
    network = family.denoiser
    generator = torch.Generator().manual_seed(0)
    names = [n for n, _ in network.named_parameters() if "attn2.to_k.weight" in n]
    state = {
        name: network.get_parameter(name).detach()
        + 0.01 * torch.randn(network.get_parameter(name).shape, generator=generator)
        for name in [*names, "conv_in.bias"]
    }
    save_file(state, folder / "esd.safetensors")
    return folder / "esd.safetensors"


def test_a_checkpoint_becomes_a_gated_guard_that_fits_its_model(
    model: tuple[Path, Family], tmp_path: Path
) -> None:
    folder, family = model
    result = run(eraser(tmp_path, family), tmp_path, folder, *QUICK)
    assert result.exit_code == 0, result.output
    assert "left out: 1 biases: conv_in.bias" in result.stdout
    artifact = Artifact.load(tmp_path / "g.safetensors")
    settings = artifact.meta.settings
    assert settings["gated"] is True and "weights.text" in artifact.tensors
    assert (settings["source"], settings["layout"]) == ("esd.safetensors", "weights")
    guard = {"name": "g", "artifact": tmp_path / "g.safetensors"}
    config = Config.model_validate(
        {
            "models": [{"name": "tiny", "engine": "diffusers", "source": str(folder)}],
            "guards": [guard],
            "policies": {"p": {"guards": ["g"], "action": "refine"}},
        }
    )
    plans = ImagePlans(config, family, name="tiny")
    assert [guard.name for guard in plans["p"].guards] == ["g"]


def test_as_published_it_has_no_gate(model: tuple[Path, Family], tmp_path: Path) -> None:
    folder, family = model
    source = eraser(tmp_path, family)
    result = run(source, tmp_path, folder, *QUICK, "--ungated", "--rank", "2", "--json",
                 "--least-share", "0")  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["settings"]["gated"] is False and report["settings"]["threshold"] == 0.0
    assert report["settings"]["dropped"] == {"biases": ["conv_in.bias"]}
    assert "acts on every image" in report["judgement"]


def test_faults_are_one_line_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "delta.bin").write_bytes(pickle.dumps({}))
    result = run(tmp_path / "delta.bin", tmp_path, "nowhere")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "is a pickle" in result.stderr and "weights_only=True" in result.stderr
    result = run(tmp_path / "nothing", tmp_path, "nowhere")
    assert result.exit_code == 1 and "does not exist" in result.stderr


def test_a_wrong_base_is_one_line(model: tuple[Path, Family], tmp_path: Path) -> None:
    save_file({"conv_in.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    result = run(tmp_path / "other.safetensors", tmp_path, model[0], "--ungated")
    assert result.exit_code == 1 and "it is of another model" in result.stderr


def test_a_smaller_dtype_is_for_language_models(model: tuple[Path, Family], tmp_path: Path) -> None:
    source = eraser(tmp_path, model[1])
    result = run(source, tmp_path, model[0], "--ungated", "--dtype", "bfloat16")
    assert result.exit_code == 1
    assert "--dtype: for language models, and the base is none" in result.stderr
