"""What `guard new` and `guard refine` refuse before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.guard.commands.running import run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that could only be loaded were it a model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--near-fpr", "0.001"), "--near-fpr"),
        (("--fpr", "0.001"), "--fpr"),
        (("--about", "missing.txt"), "missing.txt: cannot be read"),
        (("--alias", "?"), "has no letters"),
        (("--out", "{folder}/file/g"), "is a file, not a folder"),
    ],
)
def test_new_checks_everything_first(
    tmp_path: Path, model: Path, options: tuple[str, str], message: str
) -> None:
    (tmp_path / "file").write_text("")
    values = (options[0], options[1].format(folder=tmp_path))
    out: tuple[Any, ...] = () if "--out" in options else ("--out", tmp_path / "g")
    result = run("new", "Frankenstein", "--model", model, *values, *out)
    assert result.exit_code == 1 and message in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "cannot be loaded" not in line


def test_new_refuses_an_encoder(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_text("")
    (tmp_path / "config.json").write_text("{}")
    result = run("new", "Frankenstein", "--model", tmp_path, "--out", tmp_path / "g")
    assert result.exit_code == 1 and "guard fit screen --model" in result.stderr


def test_refine_wants_the_report_beside_the_list(tmp_path: Path) -> None:
    result = run("refine", tmp_path / "g.toml", "--leak", "Who?")
    assert result.exit_code == 1 and "g.report.json: cannot be read" in result.stderr
