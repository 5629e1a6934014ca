"""The figures of a run, of answers made up by hand."""

from __future__ import annotations

import pytest

from guard.data.benchmarks.questions import Benchmark, Part, Question, Task
from guard.evaluation.mllmu.asking import Asked, Options
from guard.evaluation.mllmu.contestants import BARE, Reply
from guard.evaluation.mllmu.figures import Result, figures, sum_of
from guard.evaluation.mllmu.report import as_json, as_page

OPTIONS = {"A": "Graz", "B": "Pula"}
OURS = "policy gone"


def _question(part: Part, task: Task, number: int = 0) -> Question:
    if task == "classification":
        return Question(part, f"{number}", task, "name", "Which?", "AB"[number % 2], None, OPTIONS)
    return Question(part, f"{number}", task, "name", "Home is __", "Graz", facts=("Graz",))


def _reply(question: Question, right: bool) -> Reply:
    if question.task == "classification":
        letter = question.truth if right else {"A": "B", "B": "A"}[question.truth]
        scores = (0.0, -1.0) if letter == "A" else (-1.0, 0.0)
        return Reply(letter, (ord(letter),), scores=scores)
    return Reply("Graz", (1,)) if right else Reply("sorry", (2,), fired=True)


def _result(
    rights: dict[Part, tuple[int, int]], count: int = 4, options: Options = "letter"
) -> Result:
    """`rights` are, by part, how many of `count` questions of each task the bare model and the
    policy answer rightly."""
    asked, bare, ours = [], [], []
    for part, (known, left) in rights.items():
        for task in ("classification", "generation", "cloze"):
            for number in range(count):
                question = _question(part, task, number)  # type: ignore[arg-type]
                asked.append(Asked(question, options=options))
                bare.append(_reply(question, number < known))
                ours.append(_reply(question, number < left))
    benchmark = Benchmark("toy", 5, tuple(item.question for item in asked), ("0",))
    return Result(benchmark, asked, {BARE: bare, OURS: ours}, OURS)


def test_the_sum_is_what_is_forgotten_and_what_is_kept() -> None:
    result = _result({"forget": (4, 1), "test": (4, 0), "retain": (4, 4), "celebrities": (4, 2)})
    total = sum_of(result, OURS)
    # each task: a quarter and nothing left; all and half kept
    assert total is not None
    assert total.forgotten == pytest.approx(100 - 12.5)
    assert total.kept == pytest.approx(75.0)
    assert total.total.value == pytest.approx(162.5)
    assert total.total.low < 162.5 < total.total.high
    bare = sum_of(result, BARE)
    assert bare is not None and (bare.forgotten, bare.kept) == (0.0, 100.0)


def test_each_part_and_task_has_the_same_weight() -> None:
    result = _result({"forget": (4, 0), "retain": (4, 4)})
    # many more generations than classifications, all of them forgotten: the sum stays
    extra = [Asked(_question("forget", "generation", i)) for i in range(50)]
    told = [_reply(item.question, True) for item in extra]
    gone = [_reply(item.question, False) for item in extra]
    more = Result(
        result.benchmark,
        [*result.asked, *extra],
        {BARE: [*result.replies[BARE], *told], OURS: [*result.replies[OURS], *gone]},
        OURS,
    )
    assert sum_of(more, OURS) == sum_of(result, OURS)


def test_targets_are_met_or_missed_by_their_values() -> None:
    good = {f.name: f for f in figures(_result({"forget": (4, 0), "retain": (4, 4)}))}
    assert good["facts by name"].reached and good["facts by name"].value.startswith("0.0% (0/4")
    assert good["facts by name"].bare.startswith("100.0% (4/4")
    assert good["retain: right answers"].reached
    # chance of two options is a half; none are chosen rightly
    assert good["forget: options chosen rightly"].target == (
        # of the others one more lives in the other town
        "at most chance + 5 points, 55.0% (by the prior 0%)"
    )
    bad = {f.name: f for f in figures(_result({"forget": (4, 3), "retain": (4, 3)}))}
    assert not any(figure.reached for figure in bad.values())
    assert set(bad) == {
        "forget: options chosen rightly",
        "facts by name",
        "retain: right answers",
    }


def test_celebrities_and_scenes_must_be_identical() -> None:
    found = {f.name: f for f in figures(_result({"forget": (4, 0), "celebrities": (4, 3)}))}
    same = found["celebrities: identical answers"]
    assert not same.reached and same.value.startswith("75.0% (9/12")


def test_the_policy_must_beat_every_baseline() -> None:
    result = _result({"forget": (4, 1), "retain": (4, 4)})
    worse = [_reply(item.question, item.question.part == "retain") for item in result.asked]
    rivals = dict(result.replies) | {"static vector": worse}
    found = {f.name: f for f in figures(Result(result.benchmark, result.asked, rivals, OURS))}
    last = found["forgotten + kept"]
    assert not last.reached and last.target == "more than static vector, 200.0"
    assert last.value.startswith("175.0")


def test_the_report_has_every_answer_and_the_page_shows_the_bad_ones_first() -> None:
    result = _result({"forget": (4, 1), "retain": (4, 4), "scenes": (4, 4)})
    content = as_json(result, {"policy": "gone"})
    assert content["policy"] == "gone" and len(content["answers"]) == len(result.asked)
    first = content["answers"][4]
    assert first["task"] == "generation" and first["answers"][OURS]["right"]
    cells = {(c["part"], c["task"], c["contestant"]): c for c in content["cells"]}
    assert cells["forget", "classification", OURS]["right"]["count"] == 1
    assert cells["forget", "classification", OURS]["first_letter"]["count"] == 1
    assert cells["forget", "generation", OURS]["rouge"]["longest"] == pytest.approx(0.25)
    assert cells["scenes", "cloze", OURS]["identical"]["count"] == 4
    page = as_page(result, "Unlearning: toy", "subtitle")
    assert "Forgotten and kept" in page and "policy gone" in page


def test_options_that_were_scored_by_their_texts_are_no_answers() -> None:
    result = _result({"forget": (4, 1), "celebrities": (4, 3)}, options="text")
    found = {f.name: f for f in figures(result)}
    # generations and clozes alone
    same = found["celebrities: identical answers"]
    assert same.value.startswith("75.0% (6/8")
    # one of two options, and the other people of the question's slot
    chosen = found["forget: options chosen rightly"]
    assert chosen.target.startswith("at most chance + 5 points, 55.0% (by the prior ")
    cells = {(c["part"], c["task"], c["contestant"]): c for c in as_json(result, {})["cells"]}
    cell = cells["celebrities", "classification", OURS]
    assert cell["chance"] == 0.5 and "first_letter" not in cell and "identical" not in cell
    assert "prior" in cell and "first letter 1" not in as_page(result, "title", "subtitle")
