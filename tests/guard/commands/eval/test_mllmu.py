"""`guard eval mllmu` as it is typed: a tiny model, a real guard, a small benchmark, the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from guard.artifact import Artifact, ArtifactMeta
from guard.cli import app
from guard.models.chat import TransformersChat
from tests.guard.data.benchmarks.files import save_mllmu
from tests.guard.evaluation.mllmu.tiny import DEPTH, WIDTH, save_model, steer

CONFIG = """
[[models]]
name = "tiny"
source = "{model}"
[[guards]]
name = "gone"
artifact = "gone.safetensors"
[policies.gone]
guards = ["gone"]
"""


def _save_guard(path: Path, chat: TransformersChat) -> None:
    guard = steer()
    meta = ArtifactMeta.model_validate(
        {
            "method": "steer",
            "concept": "person/gone",
            "created": "2026-01-31",
            "model": chat.fitted_model.model_dump(),
            "seams": ["hidden"],
            "settings": {
                "sense_layers": [1],
                "act_layers": [2],
                "pool": 2,
                "rest": 6,
                "schedule": [1.0] * 6,
                # it fires on every prompt
                "threshold": -1e3,
                "recheck": None,
                "strength": 1.0,
            },
        }
    )
    tensors = {
        "gates": guard.gates.numpy(),
        "directions": np.ascontiguousarray(guard.directions[0].numpy()),
    }
    Artifact(meta, tensors).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mllmu")
    save_model(root / "model")
    chat = TransformersChat.load(str(root / "model"), device="cpu")
    assert (chat.depth, chat.width) == (DEPTH, WIDTH)
    _save_guard(root / "gone.safetensors", chat)
    (root / "config.toml").write_text(CONFIG.format(model="./model"), "utf-8")
    save_mllmu(root / "data")
    return root


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        app,
        ["eval", "mllmu", str(folder / "data"), "--policy", "gone", "--limit", "1"]
        + ["--config", str(folder / "config.toml"), *arguments],
    )


@pytest.mark.usefixtures("plain_terminal")
def test_the_suite_writes_figures_answers_and_a_page(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "--share", "10", "--baselines", "--json", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "gone.mllmu.json").read_text("utf-8"))
    assert json.loads(result.stdout) == content
    assert content["people_forgotten"] == 2 and content["share"] == 10
    names = {"bare", "policy gone", "refusal prompt", "static vector", "soft gate"}
    names |= {"gradient ascent", "KL minimisation"}
    assert set(content["contestants"]) | {"bare"} == names == set(content["sums"])
    assert content["contestants"]["refusal prompt"] == {"names": 2}
    cells = {
        (c["part"], c["task"], c["by"], c["variant"], c["contestant"]) for c in content["cells"]
    }
    assert ("forget", "generation", "portrait", "screen", "policy gone") in cells
    assert ("scenes", "generation", "portrait", "", "bare") in cells
    # the guard fires on everything, so celebrities are not identical: the figure says so
    figures = {figure["name"]: figure for figure in content["figures"]}
    assert not figures["celebrities: identical answers"]["reached"]
    assert figures["facts, thinking aloud"]["target"] == "at most 8%"
    asked = content["answers"]
    assert all(row["answers"]["policy gone"]["fired"] for row in asked)
    # baselines are asked as released only
    assert {row["variant"] for row in asked if "static vector" in row["answers"]} == {""}
    choices = [row for row in asked if row["task"] == "classification"]
    towns = {"Graz", "Pula", "Brno", "Paris", *(f"Town{number}" for number in range(10))}
    assert {row["answers"]["bare"]["text"] for row in choices} <= towns
    assert not any("\n" in row["text"] for row in choices)
    page = (tmp_path / "gone.mllmu.html").read_text("utf-8")
    assert "Forgotten people" in page and "data:image/webp;base64" in page
    assert list(tmp_path.glob("bare-*.mllmu.jsonl"))


@pytest.mark.usefixtures("plain_terminal")
def test_parts_may_be_chosen(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "--part", "celebrities,scenes", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "gone.mllmu.json").read_text("utf-8"))
    assert {row["part"] for row in content["answers"]} == {"celebrities", "scenes"}
    assert "celebrities: identical answers" in result.stdout


@pytest.mark.usefixtures("plain_terminal")
def test_options_may_be_chosen_by_letter(folder: Path, tmp_path: Path) -> None:
    result = run(
        folder, "--share", "10", "--part", "retain", "--options", "letter", "--out", str(tmp_path)
    )
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "gone.mllmu.json").read_text("utf-8"))
    assert content["options"] == "letter"
    cells = [c for c in content["cells"] if c["task"] == "classification"]
    assert cells and all("first_letter" in cell for cell in cells)
    choices = [row["text"] for row in content["answers"] if row["task"] == "classification"]
    assert all("\nA: Graz\nB: Town" in text for text in choices)


@pytest.mark.usefixtures("plain_terminal")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--share", "7"], "has no forget set of 7 %"),
        (["--part", "strangers"], "no strangers: there is forget, test"),
        (["--options", "colour"], "'colour' is not one of 'text', 'letter'"),
        (["--model", "other"], "no model 'other'"),
        (["--policy", "none"], "has no guards to measure"),
        (["--policy", "unknown"], "unknown"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder: Path, arguments: list[str], message: str) -> None:
    result = run(folder, *arguments)
    assert result.exit_code != 0
    assert message in result.output and "Traceback" not in result.output
