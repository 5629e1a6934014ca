"""What a user says of a concept is checked before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guard.errors import DataError
from guard.fitting.images.drafts.naming import named

FILE = {
    "name": "object/dog",
    "phrases": {"train": ["a dog"]},
    "hard_negatives": [f"a thing {i}" for i in range(6)],
    "replacements": ["a cat"],
}


def test_a_name_its_kind_and_phrases(tmp_path: Path) -> None:
    listed, started = tmp_path / "p.txt", tmp_path / "dog.json"
    listed.write_text("a doggo\n\n  man's best friend \n")
    started.write_text(json.dumps(FILE))
    found = named("Food/hot-dog", ["frank"], [listed, started])
    assert (found.kind, found.name, found.slug) == ("food", "hot dog", "hot-dog")
    assert found.phrases == ("frank", "a doggo", "man's best friend")
    assert found.started is not None and found.started.name == "object/dog"
    assert named("ice-cream", [], []).name == "ice-cream"


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("", "", "", "has no name"),
        ("object/", "", "", "has no name"),
        ("style/twemoji", "", "", "a style has no words"),
        ("dog", "p.txt", "a\n" * 201, "at most 200"),
        ("dog", "p.txt", "a" * 301, "phrase 1 has more than 300"),
        ("dog", "p.txt", "", "is empty"),
        ("dog", "p.json", "{}", "phrases: is missing"),
        ("dog", "p.json", json.dumps(FILE | {"ending": True}), "a style has no words"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    tmp_path: Path, name: str, file: str, content: str, message: str
) -> None:
    if file:
        (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message) as raised:
        named(name, [], [tmp_path / file] if file else [])
    assert "\n" not in str(raised.value)
