"""A misspelt key of a file is named with the key that was meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard.data.concept import read_concept
from guard.data.faults import closest, suggestion
from guard.data.prompts import ForgetPrompt, RetainPrompt, SceneImage, ScreenText, read_rows
from guard.errors import DataError

CONCEPT: dict[str, Any] = {
    "name": "object/knife",
    "phrases": {"train": ["a knife"]},
    "hard_negatives": ["a", "b", "c", "d", "e", "f"],
    "replacements": ["a spoon"],
}


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (ForgetPrompt, {"prompt": "p", "fact": ["f"]}, 'unknown key "fact": did you mean "facts"?'),
        (ForgetPrompt, {"Prompt": "p", "facts": ["f"]}, 'did you mean "prompt"?'),
        # it would be far, silently
        (RetainPrompt, {"prompt": "p", "knd": "near"}, 'unknown key "knd": did you mean "kind"?'),
        (ScreenText, {"txt": "t", "unsafe": True, "source": "s"}, 'did you mean "text"?'),
        (SceneImage, {"pictures": "a.png", "concept": "c"}, 'did you mean "picture"?'),
        (RetainPrompt, {"question": "p"}, "prompt: is missing: add it"),
    ],
)
def test_a_misspelt_key_of_a_row(
    tmp_path: Path, kind: type[Any], row: dict[str, Any], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError) as caught:
        read_rows(path, kind)
    assert message in str(caught.value) and "line 1" in str(caught.value)


def test_notes_beside_a_row_stay(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p", "prompts": "of one mind", "author": "me"}')
    assert read_rows(path, RetainPrompt)[0].prompt == "p"


def test_one_json_value_is_no_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps([{"prompt": "p"}], indent=1))
    with pytest.raises(DataError, match="one JSON value over several lines: write one object on"):
        read_rows(path, RetainPrompt)


def test_a_misspelt_key_of_a_concept(tmp_path: Path) -> None:
    path = tmp_path / "knife.json"
    path.write_text(
        json.dumps({**CONCEPT, "companion": ["a"], "phrases": {"train": ["k"], "valdation": []}})
    )
    with pytest.raises(DataError) as caught:
        read_concept(path)
    assert 'companion: unknown key: did you mean "companions"?' in str(caught.value)
    assert 'phrases.valdation: unknown key: did you mean "validation"?' in str(caught.value)


def test_a_concept_file_may_have_a_byte_order_mark_and_must_be_text(tmp_path: Path) -> None:
    path = tmp_path / "knife.json"
    path.write_text(json.dumps(CONCEPT), "utf-8-sig")
    assert read_concept(path).name == "object/knife"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_concept(path)


def test_what_is_suggested() -> None:
    assert suggestion("strenght", ["strength", "threshold"]) == 'did you mean "strength"?'
    assert suggestion("xyz", ["a", "b"]) == "there is a, b"
    assert suggestion("xyz", []) == "none is configured"
    assert closest("FACTS", ["facts"]) == "facts" and closest("zzz", ["facts"]) is None
