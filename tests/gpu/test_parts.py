"""Each part measures on a CPU, with small random models, what it would on a GPU."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from guard.artifact import Artifact
from tests.gpu.parts import PARTS
from tests.gpu.parts.models import language_model
from tests.gpu.report import Figure
from tests.gpu.running import run_part
from tests.gpu.settings import Settings, Skipped
from tests.server.tiny_pipeline import save_guards, save_pipeline


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    work = str(tmp_path / "work")
    return Settings("cpu", True, 1, None, "none", "none", "none", work)


def _figures(settings: Settings, part: str) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    PARTS[part].run(settings, lambda figure: found.update({figure.name: figure}))
    assert all(figure.passed is not False for figure in found.values())
    return found


def test_the_transformers_engine_is_measured(settings: Settings) -> None:
    found = _figures(settings, "transformers")
    assert found["float32: clear decisions as on the CPU"].value == 1.0
    assert found["float32: largest difference of a score"].value == 0.0
    assert found["float32: bare throughput"].value > 0
    assert found["float32: guarded, of bare"].value > 0
    assert found["float32: own waits for the GPU"].value == 0.0


def test_the_table_is_compared_and_measured(settings: Settings) -> None:
    found = _figures(settings, "table")
    for loaded in (1, 3):
        assert found[f"{loaded}: tokens with other states"].value == 0
        assert found[f"{loaded}: requests with other readings"].value == 0
        assert found[f"{loaded}: waits for the GPU"].value == 0


def test_the_image_engine_is_measured(settings: Settings, tmp_path: Path) -> None:
    family = save_pipeline(tmp_path / "pipeline")
    (tmp_path / "guards").mkdir()
    save_guards(tmp_path / "guards", family)
    images, guards = str(tmp_path / "pipeline"), str(tmp_path / "guards")
    found = _figures(replace(settings, images=images, image_guards=guards), "images")
    assert found["float32: clear decisions as on the CPU"].value == 1.0
    assert found["float32: bare throughput"].value > 0
    assert found["float32: own waits for the GPU"].value == 0.0
    with pytest.raises(Skipped, match="no guard that reads prompts"):
        PARTS["images"].run(replace(settings, images=images, image_guards=images), _ignore)


def test_parts_without_their_models_are_skipped(settings: Settings) -> None:
    for part, option in {"images": "--images", "screens": "--encoder"}.items():
        with pytest.raises(Skipped, match=f"give {option} FOLDER"):
            PARTS[part].run(settings, _ignore)
    with pytest.raises(Skipped, match="give --language FOLDER"):
        PARTS["transformers"].run(replace(settings, language="owner/model"), _ignore)


def test_a_part_without_its_package_is_skipped_in_its_process(settings: Settings) -> None:
    # `-S` leaves the installed packages out
    command = (sys.executable, "-c", _WITHOUT_VLLM, "drafts")
    part = run_part("drafts", settings, 120.0, command)
    assert (part.status, part.why) == ("skipped", "not installed: vllm")


_WITHOUT_VLLM = (
    "import importlib.util as util, runpy\n"
    "find = util.find_spec\n"
    "util.find_spec = lambda name, *more: None if name == 'vllm' else find(name, *more)\n"
    "runpy.run_module('tests.gpu.part', run_name='__main__')"
)


def test_a_given_model_gets_a_guard_of_its_shape(settings: Settings, tmp_path: Path) -> None:
    from tests.steering.tiny import tiny_model

    model = tiny_model("qwen2")
    model.save_pretrained(tmp_path / "model")
    folder, artifact = language_model(replace(settings, language=str(tmp_path / "model")))
    assert folder == str(tmp_path / "model")
    fitted, about = artifact.meta.model, artifact.meta.settings
    assert fitted is not None and (fitted.layers, fitted.width) == (4, 32)
    assert max(about["sense_layers"]) <= min(about["act_layers"])
    assert max(about["act_layers"]) < 4
    assert artifact.tensors["gates"].shape == (len(about["sense_layers"]), 32)
    # another model than the one it was made for refuses it
    artifact.save(tmp_path / "guard.safetensors")
    assert Artifact.load(tmp_path / "guard.safetensors").digest == artifact.digest


def test_the_command_has_a_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--help"], capture_output=True, text=True, check=True
    )
    assert "throughput-graphs" in done.stdout


def _ignore(figure: Figure) -> None:
    """Figures of a part that is skipped."""
