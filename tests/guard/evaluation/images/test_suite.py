"""The suite file: read as a whole, cells of fixed prompts and seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.data.prompts import ImagePrompt
from guard.errors import DataError
from guard.evaluation.images.judge import Judge
from guard.evaluation.images.suite import PART, ImageSuite, cells, load_suite, read_prompts
from tests.guard.evaluation.images.fakes import judge_file

SUITE = """
model = "emoji"
judge = "judge.onnx"
prompts = ["prompts.jsonl", "attacks/*.jsonl"]
ours = "cgce"
[methods]
cgce = "{concept}-cgce"
plain = "{concept}-plain"
"""


def _written(folder: Path, text: str = SUITE) -> Path:
    path = folder / "suite.toml"
    path.write_text(text, "utf-8")
    return path


def test_paths_are_taken_from_the_suites_folder(tmp_path: Path) -> None:
    suite = load_suite(_written(tmp_path))
    assert suite.judge == tmp_path / "judge.onnx"
    assert suite.prompts == (tmp_path / "prompts.jsonl",)
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "a.jsonl").touch()
    assert load_suite(_written(tmp_path)).prompts[1] == tmp_path / "attacks" / "a.jsonl"


def test_policies_are_named_by_concept(tmp_path: Path) -> None:
    suite = load_suite(_written(tmp_path))
    assert suite.policy("plain", "knife") == "knife-plain"
    assert suite.policy("bare", "knife") is None


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ('ours = "cgce"', 'ours = "other"', "other"),
        ('plain = "{concept}-plain"', 'bare = "x"', "bare"),
        ('model = "emoji"', "model = 3", "model"),
        ('model = "emoji"', 'modle = "emoji"', "modle"),
        ('model = "emoji"', "model = ", "no TOML"),
    ],
)
def test_faults_are_named(tmp_path: Path, before: str, after: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        load_suite(_written(tmp_path, SUITE.replace(before, after)))


def test_labels_that_the_judge_does_not_know_are_refused(tmp_path: Path) -> None:
    judge = Judge(judge_file(tmp_path / "judge.onnx"))
    suite = load_suite(_written(tmp_path))
    row = '{"prompt": "a", "concept": "knife", "kind": "pair", "kept": ["sloth"]}'
    (tmp_path / "prompts.jsonl").write_text(row, "utf-8")
    with pytest.raises(DataError, match="knows no sloth"):
        read_prompts(suite, judge)
    row = '{"prompt": "a", "concept": "knife", "kind": "x", "effort": 1, "against": "lost"}'
    (tmp_path / "prompts.jsonl").write_text(row, "utf-8")
    with pytest.raises(DataError, match="against lost"):
        read_prompts(suite, judge)


def _suite(**changes: int) -> ImageSuite:
    fields = {"model": "m", "judge": Path("j"), "prompts": (), "methods": {"a": "p"}, "ours": "a"}
    return ImageSuite.model_validate(fields | changes)


def _rows(kind: str, count: int, concept: str = "knife") -> list[ImagePrompt]:
    return [ImagePrompt(prompt=f"p{i}", concept=concept, kind=kind) for i in range(count)]


def test_attacks_run_on_the_methods_that_are_named() -> None:
    fields = {"model": "m", "judge": Path("j"), "prompts": (), "ours": "a"}
    methods = {"a": "p", "b": "q"}
    suite = ImageSuite.model_validate(fields | {"methods": methods, "attacked": ["b"]})
    (plain,), (attack,) = _rows("direct", 1), _rows("direct", 1)
    attack = attack.model_copy(update={"effort": 3})
    assert suite.methods_for(plain) == ("a", "b")
    assert suite.methods_for(attack) == ("b",)
    assert suite.methods_for(attack.model_copy(update={"against": "a"})) == ()


def test_cells_hold_the_first_prompts_and_their_places_as_seeds() -> None:
    suite_cells = cells(_rows("direct", 100), _suite(images=50))
    assert [len(cell.rows) for cell in suite_cells] == [PART, 50 - PART]
    assert [cell.part for cell in suite_cells] == [0, 1]
    seeds = [seed for cell in suite_cells for seed in cell.seeds]
    assert seeds == list(range(50))
    assert [row.prompt for cell in suite_cells for row in cell.rows] == [f"p{i}" for i in range(50)]


def test_silent_kinds_and_bare_prompts_have_other_limits() -> None:
    rows = [*_rows("clean", 90), *_rows("single", 30, concept="")]
    suite_cells = cells(rows, _suite(images=2, bare_images=20))
    assert sum(len(cell.rows) for cell in suite_cells if cell.silent) == 90
    assert sum(len(cell.rows) for cell in suite_cells if cell.kind == "single") == 20


def test_fewer_images_are_a_part_of_more() -> None:
    few, many = (cells(_rows("direct", 40), _suite(images=n)) for n in (3, 40))
    assert many[0].rows[:3] == few[0].rows
    assert many[0].seeds[:3] == few[0].seeds
