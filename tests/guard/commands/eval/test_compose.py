"""`guard eval compose` as it is typed: a tiny model, two guards, and a judge each for choice and
test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.guard.commands.eval.test_images import CONFIG, SUITE
from tests.guard.commands.running import run
from tests.guard.evaluation.images.fakes import judge_file
from tests.server.tiny_pipeline import SIDE, save_guards, save_pipeline

ROWS = [
    *({"concept": "knife", "kind": "direct", "prompt": "a knife"} for _ in range(2)),
    *(
        {"concept": "knife", "kind": "pair", "prompt": "a knife a cat", "kept": ["car"]}
        for _ in range(2)
    ),
    {"concept": "knife", "kind": "clean", "prompt": "a cat"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    save_guards(folder, save_pipeline(folder / "pipeline"))
    for name in ("judge", "second"):
        judge_file(folder / f"{name}.onnx", side=SIDE)
    banana = '[[guards]]\nname = "banana"\nartifact = "knife.safetensors"\n'
    (folder / "config.toml").write_text(f"{CONFIG}\n{banana}", "utf-8")
    (folder / "tiny.toml").write_text('validation = ["prompts.jsonl"]\n' + SUITE, "utf-8")
    (folder / "without.toml").write_text(SUITE, "utf-8")
    (folder / "two.toml").write_text(
        'validation = ["two.jsonl"]\n' + SUITE.replace("prompts.jsonl", "two.jsonl"), "utf-8"
    )
    both = [*ROWS, *({**row, "concept": "banana"} for row in ROWS)]
    for name, rows in (("prompts", ROWS), ("two", both)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    return folder


def arguments(folder: Path, suite: str = "tiny", **changed: str) -> list[str]:
    options = {"--concept": "knife", "--guards": "guide,knife"} | changed
    named = [part for option in options.items() for part in option]
    files = [str(folder / f"{suite}.toml"), "--config", str(folder / "config.toml")]
    return ["eval", "compose", *files, *named]


def test_a_pair_is_chosen_and_measured_beside_its_guards(folder: Path, tmp_path: Path) -> None:
    result = run(*arguments(folder), "--out", str(tmp_path), "--choose", "1", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "tiny.knife.compose.json").read_text("utf-8"))
    assert json.loads(result.stdout) == report
    # in the order of the configuration
    assert report["chosen"] == ["knife", "guide"]
    tried = {tuple(row["guards"]): row for row in report["validation"]}
    assert {*tried} == {("knife",), ("guide",), ("knife", "guide")}
    # one image of each kind chose, all of the suite's test
    assert tried["knife",]["reproduced"]["total"] == 2
    assert {*report["methods"]} == {"bare", "knife", "guide", "knife+guide"}
    assert "/2;" in report["methods"]["knife"]["reproduced"]["direct"]
    page = (tmp_path / "tiny.knife.compose.html").read_text("utf-8")
    assert "Combinations on the validation prompts" in page


def test_each_concept_has_a_pair_of_its_own(folder: Path, tmp_path: Path) -> None:
    options = {"--concept": "knife,banana", "--guards": "{concept},guide"}
    result = run(*arguments(folder, "two", **options), "--out", str(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    reports = json.loads(result.stdout)
    assert [*reports] == ["knife", "banana"]
    for concept, report in reports.items():
        file = tmp_path / f"two.{concept}.compose.json"
        assert json.loads(file.read_text("utf-8")) == report
        assert {*report["chosen"]} == {concept, "guide"} and report["concept"] == concept
    table = run(*arguments(folder, "two", **options), "--out", str(tmp_path))
    assert "sum of errors, validation" in table.stdout and "guide + banana" in table.stdout


@pytest.mark.parametrize(
    ("suite", "changed", "message"),
    [
        ("tiny", {"--concept": "knife,cat"}, "name guards of each concept, as in {concept}-cgce"),
        (
            "two",
            {"--concept": "knife,car", "--guards": "{concept},guide"},
            "`validation` has no prompts for 'car'",
        ),
        ("tiny", {"--guards": "knife"}, "a pair is chosen among 2 to 12 guards"),
        ("tiny", {"--guards": "knife,lost"}, "no guard 'lost': it has knife"),
        ("tiny", {"--concept": "cat"}, "`validation` has no prompts for 'cat'"),
        ("without", {}, "has no `validation` prompts to choose by"),
    ],
)
def test_what_is_missing_is_named_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, suite: str, changed: dict[str, str], message: str
) -> None:
    result = run(*arguments(folder, suite, **changed), "--out", str(tmp_path))
    assert result.exit_code == 1 and message in result.stderr, result.output
