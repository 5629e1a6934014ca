"""What is missing to load a model of entities."""

from __future__ import annotations

from pathlib import Path

import pytest

from classifiers.text.entities import sources
from classifiers.text.entities.sources import fault_of


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The libraries that are there."""
    there = {"presidio_analyzer", "torch", "transformers"}
    monkeypatch.setattr(sources, "find_spec", lambda name: name if name in there else None)
    return there


def _folder(path: Path, *files: str) -> str:
    for file in files:
        (path / file).write_text("{}")
    return str(path)


def test_an_absent_extra_is_told_with_the_command(installed: set[str], tmp_path: Path) -> None:
    installed.remove("presidio_analyzer")
    fault = fault_of(_folder(tmp_path, "config.cfg"))
    assert fault == "needs presidio-analyzer: pip install 'inference-guard[ner]'"


def test_an_absent_package_is_told_with_the_command(installed: set[str]) -> None:
    fault = fault_of("xx_no_such_model")
    assert fault is not None and "python -m spacy download xx_no_such_model" in fault
    assert fault_of("pytest") is None


@pytest.mark.parametrize("name", ["../x; rm", "a b", "", "http:"])
def test_what_is_no_package_is_not_looked_for(installed: set[str], name: str) -> None:
    assert fault_of(name) is not None


def test_a_folder_without_a_model_is_told(installed: set[str], tmp_path: Path) -> None:
    assert "config.cfg" in str(fault_of(str(tmp_path / "none")))
    assert "safetensors" in str(fault_of(_folder(tmp_path, "config.json")))
    folder = _folder(tmp_path, "model.safetensors")
    assert fault_of(folder) is None
    installed.remove("torch")
    assert "needs torch" in str(fault_of(folder))
    assert fault_of(_folder(tmp_path, "config.cfg")) is None, "spaCy needs no torch"
