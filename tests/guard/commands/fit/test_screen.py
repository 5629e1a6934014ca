"""`guard fit screen` from a file of texts to an artifact with its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from classifiers.text.encoder.conversion import convert
from guard.artifact import Artifact
from guard.cli import app
from guard.data.traffic.traffic import Family
from guard.fitting.screens import examples
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


def fit(model: Path | str, data: Path, out: Path, *options: str) -> Result:
    options_of_model = [
        "--model",
        str(model),
        "--data",
        str(data),
        "--out",
        str(out),
        "--fpr",
        "0.05",
    ]
    return CliRunner().invoke(
        app, ["fit", "screen", *options_of_model, "--concept", "text/letters", *options]
    )


def test_an_artifact_and_its_report_are_written(model: Path, data: Path, tmp_path: Path) -> None:
    hold_out = [option for source in HELD for option in ("--hold-out", source)]
    options = ("--kind", "prototype", "--calibration", "isotonic", "--json")
    result = fit(model, data, tmp_path / "s.safetensors", *hold_out, *options)
    assert result.exit_code == 0, result.output
    artifact, report = Artifact.load(tmp_path / "s.safetensors"), json.loads(result.stdout)
    assert report["digest"] == artifact.digest and report["settings"] == artifact.meta.settings
    assert artifact.meta.settings["kind"] == "prototype" and "table_logits" in artifact.tensors
    stored = json.loads((tmp_path / "s.report.json").read_text("utf-8"))
    assert stored["calibration"] == artifact.meta.calibration
    assert "misses" in stored["judgement"] and stored["judgement"] == report["judgement"]
    # those of the folds and those that were held out
    texts, tested = artifact.meta.calibration["texts"], stored["calibration"]["tested"]
    caught = round(texts["unsafe"] * stored["calibration"]["recall"])  # type: ignore[index,call-overload]
    caught += tested["recall"]["all"]["count"]
    assert len(stored["missed"]) == 120 - caught
    alarms = tested["false_positives"]["all"]["count"]
    assert len(stored["hit"]) >= alarms and all(row["kind"] == "benign" for row in stored["hit"])
    assert "text/letters" in (tmp_path / "s.report.html").read_text("utf-8")


def test_without_json_the_figures_are_printed(model: Path, data: Path, tmp_path: Path) -> None:
    result = fit(model, data, tmp_path / "s.safetensors", "--hold-out", HELD[0])
    assert result.exit_code == 0, result.output
    assert "held-out examples that fire" in result.stdout and "bad-elsewhere" in result.stdout


@pytest.mark.parametrize(
    ("row", "out", "message"),
    [
        ('{"text": "a", "unsafe": true}', "s.safetensors", "line 1: source"),
        ('{"text": "a", "unsafe": true, "source": "x"}', "s.pt", "ends in .safetensors"),
        ('{"text": "a", "unsafe": true, "source": "x"}', "s.safetensors", "too few unsafe texts"),
    ],
)
def test_a_fault_is_reported_in_one_line(tmp_path: Path, row: str, out: str, message: str) -> None:
    data, model = tmp_path / "d.jsonl", tmp_path / "model"
    data.write_text(row, "utf-8")
    model.mkdir()
    (model / "config.json").write_text("{}", "utf-8")
    result = fit(model, data, tmp_path / out)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert message in line and not (tmp_path / out).exists()


def test_texts_too_few_for_the_rate_are_refused_before_the_encoder(
    data: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", "utf-8")
    few = fit(model, data, tmp_path / "s.safetensors", "--fpr", "0.005")
    assert few.exit_code == 1 and "needs 199 benign texts" in few.stderr and "--fpr" in few.stderr
    unknown = fit(model, data, tmp_path / "s.safetensors", "--hold-out", "nobody")
    assert "nothing is of the source 'nobody'" in unknown.stderr
    enough = fit(model, data, tmp_path / "s.safetensors")
    assert enough.exit_code == 1 and "no text encoder" in enough.stderr


def test_a_few_examples_are_enough(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = [row.prompt for row in ROWS if not row.unsafe]
    bank = [Family(str(place), "people", tuple(letters[place::8])) for place in range(8)]
    monkeypatch.setattr(examples, "families", lambda: bank)
    monkeypatch.setattr(examples, "topics", lambda: ())
    monkeypatch.setattr(examples, "NEAR", 40)
    # random weights find all texts alike
    monkeypatch.setattr(examples, "_SAME", 2.0)
    mine = tmp_path / "mine.txt"
    mine.write_text("\n".join(row.prompt for row in ROWS if row.unsafe), "utf-8")
    out = tmp_path / "s.safetensors"
    options = ["--model", str(model), "--examples", str(mine), "--concept", "text/mine"]
    result = CliRunner().invoke(
        app,
        ["fit", "screen", *options, "--out", str(out), "--fpr", "0.05", "--look", "user"],
    )
    assert result.exit_code == 0, result.output
    assert "wrongly hit" in result.stdout or "missed" in result.stdout
    meta = Artifact.load(out).meta
    assert list(meta.settings["look"]) == ["user"]  # type: ignore[call-overload]
    counts = meta.calibration["texts"]
    assert counts["unsafe"] == 120 and 40 <= counts["benign"] <= 160  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give labelled texts with --data, or unsafe ones alone with --examples"),
        (("--examples", "few.txt"), "has 2 different texts: give 8 to 5000"),
        (("--data", "few.txt", "--examples", "few.txt"), "give labelled texts with --data"),
        (("--data", "few.txt", "--benign", "few.txt"), "--benign goes with --examples"),
        (("--examples", "few.txt", "--look", "moon"), "--look: 'moon' is no place"),
    ],
)
def test_faults_of_the_options_are_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few.txt").write_text("one\ntwo\n", "utf-8")
    command = ["fit", "screen", "--concept", "text/x", "--out", "s.safetensors", *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and message in result.stderr.replace("\n", " ")
