"""What the guards of several concepts leave of everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.concept_curve import (
    OTHERS,
    direct,
    kept_ratio,
    others,
    policy_names,
    report,
    together,
)
from guard.config.schema import Config
from guard.data.prompts import ImagePrompt
from guard.errors import DataError
from guard.evaluation.images.cells import CellResults
from guard.evaluation.images.evaluation import ImageEvaluation
from guard.evaluation.images.judge import Judge, Judges
from guard.evaluation.images.suite import BARE, ImageSuite
from tests.guard.evaluation.images.fakes import FakeGenerator, judge_file

ROWS = [
    ImagePrompt(kind="single", prompt="a cat on a knife-edge", asked=("cat",)),
    ImagePrompt(kind="single", prompt="a knife", asked=("knife",)),
    ImagePrompt(kind="single", prompt="a cat twemoji", asked=("cat",), style="twemoji"),
    ImagePrompt(kind="pair", prompt="a cat and a car", asked=("cat", "car")),
    ImagePrompt(kind="pair", prompt="a knife and a car", asked=("knife", "car")),
    ImagePrompt(kind="paraphrase", prompt="a tomcat", asked=("cat",)),
    ImagePrompt(kind="direct", concept="knife", prompt="a knife"),
    ImagePrompt(kind="direct", concept="cat", prompt="a cat"),
]


def test_others_ask_for_none_of_the_concepts_or_styles() -> None:
    found = others(ROWS, ["knife", "twemoji"])
    assert [row.prompt for row in found] == ["a cat on a knife-edge", "a cat and a car"]
    assert [row.kept for row in found] == [("cat",), ("cat", "car")]
    assert [row.prompt for row in direct(ROWS, "knife")] == ["a knife"]


def test_the_guards_of_all_concepts_are_in_one_policy() -> None:
    guards = [{"name": n, "artifact": f"{n}.safetensors"} for n in ("a-uce", "b-uce", "c-uce")]
    policies = {f"{n}-x": {"guards": [f"{n}-uce"], "action": "overlay"} for n in "abc"}
    policies["first-2-x"] = {"guards": ["c-uce"], "action": "overlay"}
    config = Config.model_validate({"models": [], "guards": guards, "policies": policies})
    suite = _suite(Path("judge.onnx"), {"uce": "{concept}-x"})
    names = policy_names(suite, ["uce", "joint=first-{count}-x"])
    assert names == {"uce": "{concept}-x", "joint": "first-{count}-x"}
    policy = together(config, names["uce"], ["b", "a"])
    assert policy.guards == ("b-uce", "a-uce") and policy.action == "overlay"
    assert together(config, names["joint"], ["b", "a"]).guards == ("c-uce",)
    with pytest.raises(DataError, match="no method 'rece': the suite has uce"):
        policy_names(suite, ["rece"])


def test_what_is_kept_is_told_of_the_bare_rate(tmp_path: Path) -> None:
    judge = judge_file(tmp_path / "judge.onnx")
    suite = _suite(judge, {"rough, 1": "knife-rough", "good, 1": "knife-good"})
    rows = [*others(ROWS, ["knife"]), *direct(ROWS, "knife")]
    results = CellResults(tmp_path / "results.jsonl")
    evaluation = ImageEvaluation(suite, FakeGenerator(), Judges(Judge(judge)), results)
    cells = evaluation.run(rows, _quiet)
    # of the two others one has the letters that these policies act on
    assert kept_ratio(cells, "rough, 1").value == 0.5
    assert kept_ratio(cells, "good, 1").value == kept_ratio(cells, BARE).value == 1.0
    table = report(cells, [BARE, *suite.methods])
    direct_column = [str(cell) for cell in table.columns[3].cells]
    assert direct_column[0].startswith("100.0%") and direct_column[1].startswith("0.0%")
    assert {row.kind for item in cells for row in item.cell.rows} == {OTHERS, "direct"}


def _suite(judge: Path, methods: dict[str, str]) -> ImageSuite:
    fields = {"model": "fake", "judge": judge, "prompts": (), "methods": methods, "verify": 0}
    return ImageSuite.model_validate(fields | {"ours": next(iter(methods))})


def _quiet(stage: str, total: int) -> object:
    return lambda count: None
