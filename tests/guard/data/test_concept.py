from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard.data.concept import read_concept
from guard.errors import DataError

SOUND: dict[str, Any] = {
    "name": "object/knife",
    "phrases": {"train": ["a knife"], "validation": ["a dagger"]},
    "hard_negatives": ["a fork", "a saw", "an axe", "a pen", "a spoon", "a butter dish"],
    "replacements": ["a ladle"],
}


def write(folder: Path, content: Any) -> Path:
    path = folder / "concept.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    concept = read_concept(write(tmp_path, SOUND))
    assert concept.phrases.validation == ("a dagger",)
    assert concept.companions == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "knife"}, "name"),
        ({"phrases": {"train": []}}, "phrases.train"),
        ({"hard_negatives": ["a fork"]}, "hard_negatives"),
        ({"replacements": ["a knife"]}, "'a knife' occurs twice"),
        ({"weapon": True}, "weapon"),
        ({"instead": ["a spoon"]}, "'a spoon' is in `instead`: add it to `replacements`"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_concept(write(tmp_path, SOUND | change))


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_a_file_that_is_no_concept_is_an_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"concept\.json"):
        read_concept(write(tmp_path, content))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_concept(tmp_path / "nowhere.json")
