"""Rows of prompts with images, and questions by name that are asked by portrait as well."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guard.data.portrait_rows import with_portraits
from guard.data.prompts import ForgetPrompt, RetainPrompt, read_rows, require_text
from guard.errors import DataError

SIDE = 8


def _image(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIDE, SIDE, 3), level, np.uint8)).save(path)


def _rows(folder: Path, *rows: dict[str, object]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"facts": ["x"], **row}) + "\n" for row in rows))
    return path


def test_a_row_has_one_image_several_or_none(tmp_path: Path) -> None:
    _image(tmp_path / "one.png", 10)
    _image(tmp_path / "folder" / "two.png", 20)
    path = _rows(
        tmp_path,
        {"prompt": "who?", "image": "one.png", "subject": "Vera Lindgren"},
        {"prompt": "who?", "image": ["folder/two.png", "one.png"]},
        {"prompt": "who?"},
    )
    one, two, none = read_rows(path, ForgetPrompt)
    assert [image[0, 0, 0] for image in one.images] == [10]
    assert [image[0, 0, 0] for image in two.images] == [20, 10]
    assert two.images[1] is one.images[0]  # decoded once
    assert none.images == () and one.subject == "Vera Lindgren"


def test_a_tile_of_a_sheet(tmp_path: Path) -> None:
    sheet = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    sheet[:, SIDE:] = 200
    Image.fromarray(sheet).save(tmp_path / "sheet.png")
    entry = {"sheet.png": {"tile": SIDE, "columns": 2}}
    (tmp_path / "sheets.json").write_text(json.dumps(entry))
    (row,) = read_rows(_rows(tmp_path, {"prompt": "p", "image": "sheet.png#1"}), ForgetPrompt)
    assert row.images[0].shape == (SIDE, SIDE, 3) and (row.images[0] == 200).all()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("../outside.png", "is outside of"),
        ("gone.png", "there is no image"),
        ("text.png", "its image cannot be used"),
        (["one.png"] * 17, "at most 16 items"),
        (3, "valid tuple"),
    ],
)
def test_an_image_that_cannot_be_used_is_named_with_its_line(
    tmp_path: Path, image: object, said: str
) -> None:
    _image(tmp_path / "one.png", 1)
    (tmp_path / "text.png").write_text("no image")
    path = _rows(tmp_path, {"prompt": "p"}, {"prompt": "p", "image": image})
    with pytest.raises(DataError, match="rows.jsonl: line 2: ") as raised:
        read_rows(path, ForgetPrompt)
    assert said in str(raised.value)


def test_the_images_of_a_file_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one.png", "two.png"):
        _image(tmp_path / name, 1)
    path = _rows(tmp_path, *({"prompt": "p", "image": f"{n}.png"} for n in ("one", "one", "two")))
    monkeypatch.setattr("guard.data.prompts.MAX_PIXELS", SIDE * SIDE)
    with pytest.raises(DataError, match="line 3: two.png: the images of the file have more than"):
        read_rows(path, RetainPrompt)


def test_a_command_of_text_alone_refuses_images(tmp_path: Path) -> None:
    _image(tmp_path / "one.png", 1)
    rows = read_rows(_rows(tmp_path, {"prompt": "p", "image": "one.png"}), ForgetPrompt)
    with pytest.raises(DataError, match="1 prompts have images, and guard eval asks by text"):
        require_text(rows, "guard eval")


def _named(split: str, prompt: str, subject: str = "Vera Lindgren") -> ForgetPrompt:
    return ForgetPrompt.model_validate(
        {"prompt": prompt, "subject": subject, "split": split, "facts": ["Athens"]}
    )


def test_a_question_by_name_is_asked_by_portrait_as_well(tmp_path: Path) -> None:
    for i in range(6):
        _image(tmp_path / "Vera Lindgren" / f"{i}.png", i)
    rows = [
        _named("train", "Where does Vera Lindgren live?"),
        _named("train", "vera lindgren's job?"),
        _named("train", "Where does she live?"),
        _named("validation", "Is Vera Lindgrens a name?"),
        _named("validation", "Who is Vera Lindgren?"),
        _named("test", "Vera Lindgren?"),
    ]
    asked = with_portraits(rows, tmp_path)
    assert asked[: len(rows)] == rows
    new = asked[len(rows) :]
    assert [(row.prompt, row.split, int(row.images[0][0, 0, 0])) for row in new] == [
        ("Where does this person live?", "train", 0),
        ("This person's job?", "train", 3),
        ("Who is this person?", "validation", 1),
        ("This person?", "test", 2),
    ]
    assert all(row.leaks("in Athens") for row in new)


def test_one_subject_may_have_its_portraits_in_the_folder_itself(tmp_path: Path) -> None:
    _image(tmp_path / "a.png", 7)
    (_, new) = with_portraits([_named("validation", "Who is Vera Lindgren?")], tmp_path)
    assert new.images[0][0, 0, 0] == 7


@pytest.mark.parametrize(
    ("subject", "prompt", "said"),
    [
        ("Hugo Weber", "Who is Hugo Weber?", "has no folder 'Hugo Weber' with portraits"),
        ("../people", "Who is ../people?", "has no folder"),
        ("Vera Lindgren", "Who is she?", "no forget prompt names its subject"),
    ],
)
def test_missing_portraits_are_an_error(
    tmp_path: Path, subject: str, prompt: str, said: str
) -> None:
    _image(tmp_path / "people" / "Vera Lindgren" / "0.png", 1)
    rows = [_named("train", prompt, subject), _named("train", "She?", "Vera Lindgren")]
    with pytest.raises(DataError) as raised:
        with_portraits(rows, tmp_path / "people")
    assert said in str(raised.value)
