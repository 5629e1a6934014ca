"""`guard fit screen` from a file of texts to an artifact with its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from classifiers.text.encoder.conversion import convert
from guard.artifact import Artifact
from guard.cli import app
from tests.classifiers.text import tiny_bert
from tests.guard.fitting.screens.test_fit import HELD, ROWS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    target = folder / "made"
    target.mkdir()
    convert(tiny_bert.write(folder / "source"), target, name="tiny", precision="float32")
    return target


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "letters.jsonl"
    lines = [row.model_dump_json(by_alias=True) for row in ROWS]
    path.write_text("\n".join(lines), "utf-8")
    return path


def fit(model: Path | str, data: Path, out: Path, *more: str) -> Result:
    given = ["--model", str(model), "--data", str(data), "--out", str(out), "--fpr", "0.05"]
    return CliRunner().invoke(app, ["fit", "screen", *given, "--concept", "text/letters", *more])


def test_an_artifact_and_its_report_are_written(model: Path, data: Path, tmp_path: Path) -> None:
    held = [option for source in HELD for option in ("--hold-out", source)]
    more = ("--kind", "prototype", "--calibration", "isotonic", "--json")
    done = fit(model, data, tmp_path / "s.safetensors", *held, *more)
    assert done.exit_code == 0, done.output
    artifact, told = Artifact.load(tmp_path / "s.safetensors"), json.loads(done.stdout)
    assert told["digest"] == artifact.digest and told["settings"] == artifact.meta.settings
    assert artifact.meta.settings["kind"] == "prototype" and "table_logits" in artifact.tensors
    stored = json.loads((tmp_path / "s.report.json").read_text("utf-8"))
    assert stored["calibration"] == artifact.meta.calibration
    assert "text/letters" in (tmp_path / "s.report.html").read_text("utf-8")


def test_without_json_the_figures_are_shown(model: Path, data: Path, tmp_path: Path) -> None:
    done = fit(model, data, tmp_path / "s.safetensors", "--hold-out", HELD[0])
    assert done.exit_code == 0, done.output
    assert "held-out texts that fire" in done.stdout and "bad-elsewhere" in done.stdout


@pytest.mark.parametrize(
    ("row", "out", "said"),
    [
        ('{"text": "a", "unsafe": true}', "s.safetensors", "line 1: source"),
        ('{"text": "a", "unsafe": true, "source": "x"}', "s.pt", "ends in .safetensors"),
        ('{"text": "a", "unsafe": true, "source": "x"}', "s.safetensors", "no text encoder"),
    ],
)
def test_what_does_not_hold_is_said_in_one_line(
    tmp_path: Path, row: str, out: str, said: str
) -> None:
    data, model = tmp_path / "d.jsonl", tmp_path / "model"
    data.write_text(row, "utf-8")
    model.mkdir()
    (model / "config.json").write_text("{}", "utf-8")
    done = fit(model, data, tmp_path / out)
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said in line and not (tmp_path / out).exists()
