"""MLLMU-Bench's form: parts, forget sets, oddities of the release."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from guard.data.benchmarks.questions import correct_letter, lettered
from guard.data.benchmarks.released import load_benchmark
from guard.errors import DataError
from tests.guard.data.benchmarks.files import (
    person,
    save_mllmu,
    save_sheet,
    tile,
    write_lines,
)


def test_the_first_people_are_forgotten_and_the_others_retained(tmp_path: Path) -> None:
    benchmark = load_benchmark(save_mllmu(tmp_path), 10)
    assert benchmark.forgotten == ("000", "001") and benchmark.names == ("Person 0", "Person 1")
    people = {
        part: {q.person for q in benchmark.questions if q.part == part} for part in benchmark.parts
    }
    assert people["forget"] == people["test"] == {"000", "001"}
    assert people["retain"] == {f"{number:03d}" for number in range(2, 20)}
    assert people["celebrities"] == {"900"} and benchmark.parts[-1] == "scenes"
    kinds = Counter((q.task, q.by) for q in benchmark.questions if q.part == "forget")
    assert kinds == {
        ("classification", "portrait"): 2,
        ("classification", "name"): 2,
        ("generation", "portrait"): 2,
        ("generation", "name"): 2,
        ("generation", "both"): 2,
        ("cloze", "portrait"): 2,
        ("cloze", "name"): 2,
    }
    assert not benchmark.skipped


def test_a_question_has_its_portrait_only_where_it_is_asked_by_it(tmp_path: Path) -> None:
    benchmark = load_benchmark(save_mllmu(tmp_path), 5)
    asked = {(q.part, q.task, q.by): q for q in benchmark.questions if q.person == "000"}
    by_portrait = asked["forget", "generation", "portrait"]
    assert by_portrait.portrait is not None and by_portrait.facts == ("Town0",)
    assert np.array_equal(by_portrait.portrait.pixels(), tile(0))
    assert asked["forget", "generation", "name"].portrait is None
    assert asked["forget", "generation", "both"].portrait is not None
    altered = asked["test", "classification", "portrait"]
    assert altered.truth == "B" and altered.options["B"] == "Town0"
    assert altered.portrait is not None and np.array_equal(altered.portrait.pixels(), tile(20))


def test_the_sets_of_the_release_are_read_by_their_names(tmp_path: Path) -> None:
    save_sheet(tmp_path, 8)
    rows = [person(number, f"sheet.png#{number}") for number in range(4)]
    write_lines(tmp_path / "Full_Set.jsonl", rows)
    # whom to forget is a set of its own, not the first people
    write_lines(tmp_path / "forget_5.jsonl", [rows[2]])
    test = person(2, None) | {"images": ["sheet.png#5", "sheet.png#6"]}
    del test["image"]
    write_lines(tmp_path / "data" / "Test_Set.jsonl", [test])
    write_lines(tmp_path / "Retain_Set.jsonl", [person(9, "sheet.png#7")])
    benchmark = load_benchmark(tmp_path, 5)
    assert benchmark.forgotten == ("002",)
    tests = [q for q in benchmark.questions if q.part == "test" and q.portrait]
    assert tests and np.array_equal(tests[0].portrait.pixels(), tile(5))  # type: ignore[union-attr]
    assert {q.person for q in benchmark.questions if q.part == "celebrities"} == {"009"}


def test_questions_that_cannot_be_scored_are_counted(tmp_path: Path) -> None:
    save_sheet(tmp_path, 1)
    row = person(0, "sheet.png#0")
    classification = row["Classification_Task"]
    # as released: a correct answer that is none of the options, one given with its text, nested
    # fields as JSON text, options of other rows as None
    (choice,) = classification["Image_Textual_Questions"]
    classification["Image_Textual_Questions"] = [
        choice | {"Correct_Answer": "E"},
        choice | {"Correct_Answer": "c. Pula"},
        choice | {"Options": {"A": "Graz", "B": None, "C": None, "D": "Brno", "E": None}},
        choice | {"Options": None},
    ]
    row["Classification_Task"] = json.dumps(classification)
    row["Mask_Task"][0]["Question"] = "The home is in Maribor."
    row["Generation_Task"][1]["Type"] = None
    write_lines(tmp_path / "full.jsonl", [row] + [person(i, None) for i in range(1, 10)])
    benchmark = load_benchmark(tmp_path, 10)
    forget = [q for q in benchmark.questions if q.part == "forget"]
    chosen = [q for q in forget if (q.task, q.by) == ("classification", "portrait")]
    assert [q.truth for q in chosen] == ["C"]
    assert benchmark.skipped["a correct answer that is no option"] == 2
    assert benchmark.skipped["no question, or fewer than two options"] == 1
    assert benchmark.skipped["a cloze without a blank"] == 1
    assert benchmark.skipped["no type, question or truth"] == 1
    # nine people without an image, each with a choice, two generations and a cloze about it
    assert benchmark.skipped["a question about an image without one"] == 9 * 4


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("B", "B"), ("b", "B"), ("(B)", "B"), ("B. Rome", "B"), ("B: Rome", "B"), ("rome", "B")]
    + [("Bari", None), ("E", None), (None, None), ("", None)],
)
def test_the_letter_of_the_correct_option(answer: object, letter: str | None) -> None:
    assert correct_letter(answer, {"A": "Paris", "B": "Rome"}) == letter


def test_options_may_be_a_list_or_lack_letters() -> None:
    assert lettered(["Paris", "Rome"]) == {"A": "Paris", "B": "Rome"}
    assert lettered({"b": "Rome", "A": " Paris ", "C": None, "Z": "no letter"}) == {
        "A": "Paris",
        "B": "Rome",
    }
    assert lettered(None) == {} and lettered("Paris") == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "../secret.png"}, "outside of"),
        ({"image": "other.png"}, "there is no image"),
        ({"image": "sheet.png#99"}, "there is no tile '99'"),
        ({"image": "sheet.png#-1"}, "there is no tile '-1'"),
        ({"image": 7}, "neither a path nor bytes"),
        ({"ID": ""}, "row 1 has no ID"),
        ({"ID": "001"}, "the ID '001' is there twice"),
    ],
)
def test_a_row_at_fault_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    save_sheet(tmp_path, 4)
    rows = [person(number, f"sheet.png#{number % 4}") for number in range(20)]
    write_lines(tmp_path / "full.jsonl", [rows[0] | change, *rows[1:]])
    with pytest.raises(DataError, match=message):
        load_benchmark(tmp_path, 5)


def test_shares_and_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no benchmark"):
        load_benchmark(tmp_path, 5)
    with pytest.raises(DataError, match="no folder"):
        load_benchmark(tmp_path / "absent", 5)
    save_mllmu(tmp_path, people=4)
    with pytest.raises(DataError, match="has no forget set of 7 %"):
        load_benchmark(tmp_path, 7)
    with pytest.raises(DataError, match="5 % of 4 people are none"):
        load_benchmark(tmp_path, 5)
    write_lines(tmp_path / "forget_5.jsonl", [{"ID": "777"}])
    with pytest.raises(DataError, match="'777' is not in the full set"):
        load_benchmark(tmp_path, 5)


def test_a_file_of_no_json_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "full.jsonl").write_text('{"ID": "1"}\n[1]\n', "utf-8")
    with pytest.raises(DataError, match=r"full\.jsonl: line 2: no JSON object"):
        load_benchmark(tmp_path, 5)


def test_a_sheet_must_be_a_grid(tmp_path: Path) -> None:
    save_mllmu(tmp_path)
    (tmp_path / "sheets.json").write_text('{"sheet.png": {"tile": 7, "columns": 4}}', "utf-8")
    with pytest.raises(DataError, match="no grid of 4 columns of 7 pixels"):
        load_benchmark(tmp_path, 5)
    (tmp_path / "sheets.json").write_text("{}", "utf-8")
    with pytest.raises(DataError, match="does not give tile and columns"):
        load_benchmark(tmp_path, 5)
