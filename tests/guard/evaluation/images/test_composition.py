"""Choosing a pair of guards: what is tried, and which one is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.config.schema import Config, GuardConfig
from guard.data.prompts import ImagePrompt
from guard.errors import DataError
from guard.evaluation.images.cells import CellResults
from guard.evaluation.images.composition import (
    Combination,
    best_pair,
    choosing_judges,
    combinations_of,
    suite_of,
    tried_on,
    with_policies,
)
from guard.evaluation.images.evaluation import EvaluatedCell, ImageEvaluation
from guard.evaluation.images.judge import Judge, Judges
from guard.evaluation.images.suite import ImageSuite
from tests.guard.evaluation.images.fakes import FakeGenerator, judge_file

ALONE = [Combination((name,)) for name in "abc"]
AB, AC, BC = (Combination(tuple(pair)) for pair in ("ab", "ac", "bc"))
POLICIES = {
    "a": "knife-leaky",  # takes nothing out, and changes clean images
    "b": "knife-rough",  # takes everything out
    "c": "cat-good",  # acts on the clean prompts alone
    "a+b": "knife-rough",
    "a+c": "cat-good",
    "b+c": "knife-good",
}


def config(*names: str) -> Config:
    guards = tuple(GuardConfig(name=name, artifact=Path(f"{name}.safetensors")) for name in names)
    return Config.model_construct(guards=guards, policies={})


def test_singles_and_pairs_are_tried_in_the_order_of_the_configuration() -> None:
    assert combinations_of(["c", "a", "b"], config("a", "b", "c", "d")) == [*ALONE, AB, AC, BC]
    policies = with_policies(config("a", "b"), [AB]).policies
    assert policies["a+b"].guards == ("a", "b")


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "x"], "no guard 'x': it has a, b"), (["a"], "2 to 12 guards, not 1")],
)
def test_guards_that_make_no_pair_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        combinations_of(names, config("a", "b"))


def cells(folder: Path, *, pairs: int = 6) -> list[EvaluatedCell]:
    suite = ImageSuite.model_validate(
        {"model": "fake", "judge": folder, "prompts": (), "methods": POLICIES, "ours": "a"}
    )
    rows = [ImagePrompt(concept="knife", kind="direct", prompt="a knife")] * 6
    rows += [
        ImagePrompt(concept="knife", kind="pair", prompt="a knife and a banana", kept=("banana",))
    ] * pairs
    rows += [ImagePrompt(concept="knife", kind="clean", prompt=text) for text in ("a cat", "a car")]
    judges = Judges(Judge(judge_file(folder / "judge.onnx")))
    results = CellResults(folder / "results.jsonl")
    evaluation = ImageEvaluation(suite, FakeGenerator(), judges, results)
    return evaluation.run(rows, lambda _what, _total: lambda _count: None)


def test_the_pair_with_the_lowest_sum_of_errors_is_taken(tmp_path: Path) -> None:
    tried = tried_on(cells(tmp_path), [*ALONE, AB, AC, BC])
    assert [each.combination for each in tried][0] == BC
    sums = {each.combination.name: each.errors.value for each in tried}
    # everything shown and kept; nothing shown or kept; the concept alone taken out
    assert sums == {"a": 1.0, "b": 1.0, "c": 1.0, "a+b": 1.0, "a+c": 1.0, "b+c": 0.0}
    assert best_pair(tried, 0.0) == BC and best_pair(tried, 1.0) == BC
    assert {each.combination.name: str(each.same.count) for each in tried}["a+c"] == "1"


def test_pairs_that_change_clean_images_can_be_left_out(tmp_path: Path) -> None:
    tried = tried_on(cells(tmp_path), [*ALONE, AC])
    assert best_pair(tried, 0.5) == AC
    with pytest.raises(DataError, match=r"leaves 90\.0% of the clean images .* the best 50\.0%"):
        best_pair(tried, 0.9)


def test_without_prompts_of_pairs_there_is_no_sum(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs validation prompts of the kind pair"):
        tried_on(cells(tmp_path, pairs=0), ALONE)


def test_the_second_opinion_chooses(tmp_path: Path) -> None:
    first, second = (Judge(judge_file(tmp_path / f"{i}.onnx", blind_to=i)) for i in range(2))
    assert choosing_judges(Judges(first, second)) == Judges(second)
    assert choosing_judges(Judges(first)) == Judges(first)


def test_a_suite_of_combinations_has_no_other_methods(tmp_path: Path) -> None:
    suite = ImageSuite(
        model="fake",
        judge=tmp_path,
        prompts=(),
        methods={"x": "knife-x"},
        ours="x",
        parts=("x",),
        attacked=("x",),
    )
    changed = suite_of(suite, [BC, *BC.parts], BC)
    assert changed.methods == {"b+c": "b+c", "b": "b", "c": "c"} and changed.ours == "b+c"
    assert changed.policy("b+c", "knife") == "b+c" and not changed.parts and not changed.attacked
