"""Settings of an eraser, compared on validation prompts by the judge that may choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.eraser_settings import (
    SETTINGS,
    Remembering,
    configuration,
    fit,
    moved,
    report,
    validation,
)
from guard.data.prompts import ImagePrompt
from guard.errors import DataError
from guard.evaluation.images.cells import CellResults
from guard.evaluation.images.evaluation import ImageEvaluation
from guard.evaluation.images.judge import Judge, Judges
from guard.evaluation.images.suite import BARE, ImageSuite
from guard.fitting.images.closed_form.realera import RealEra
from guard.fitting.images.closed_form.uce import Uce
from guard.models.images import ImageModel
from steering.engines.diffusion.seams.projections import text_projections
from tests.guard.evaluation.images.fakes import FakeGenerator, judge_file
from tests.guard.fitting.images.closed_form.test_fit import built, deltas, fitted

ROWS = [
    ImagePrompt(kind="direct", concept="knife", prompt="a knife"),
    ImagePrompt(kind="paraphrase", concept="knife", prompt="a sharp blade"),
    ImagePrompt(kind="pair", concept="knife", prompt="a knife and a car", kept=("car",)),
]


def suite_of(judge: Path, **fields: Any) -> ImageSuite:
    whole = {"model": "fake", "judge": judge, "prompts": (), "methods": {"x": "x"}, "ours": "x"}
    return ImageSuite.model_validate(whole | fields)


def test_choices_are_made_on_validation_prompts_by_the_other_judge(tmp_path: Path) -> None:
    first, files = tmp_path / "first.onnx", (tmp_path / "validation.jsonl",)
    whole = suite_of(tmp_path / "second.onnx", second_opinion=first, validation=files)
    suite = validation(whole, ["rough", "good"], 3)
    assert (suite.judge, suite.second_opinion, suite.prompts) == (first, None, files)
    assert suite.policy("good", "knife") == "knife-good" and suite.images == 3
    for lacking in ({"second_opinion": None}, {"validation": ()}):
        with pytest.raises(DataError, match="no second_opinion, or no validation"):
            validation(whole.model_copy(update=lacking), ["rough"], 3)


def test_every_setting_has_its_row(tmp_path: Path) -> None:
    judge = judge_file(tmp_path / "judge.onnx")
    suite = validation(
        suite_of(judge, second_opinion=judge, validation=(judge,)), ["rough", "good"], 9
    )
    results = CellResults(tmp_path / "results.jsonl")
    evaluation = ImageEvaluation(suite, FakeGenerator(), Judges(Judge(judge)), results)
    cells = evaluation.run(ROWS, lambda _stage, _total: lambda _count: None)
    table = report(cells, [BARE, "rough", "good"])
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    assert columns[0] == [BARE, "rough", "good"]
    assert columns[1][0].startswith("100.0%") and columns[1][2].startswith("0.0%")
    assert columns[5][0] == "" and columns[5][2]


def test_artifacts_are_policies_and_those_that_are_there_are_kept(tmp_path: Path) -> None:
    artifact = fitted(built("emoji"), Uce(), least_share=0.0)
    artifact.save(tmp_path / "knife-near.safetensors")
    paths = fit({"near": _never}, ["knife"], "nowhere", tmp_path)
    config = configuration(paths, "emoji")
    policy = config.policy("knife-near")
    assert policy.guards == ("knife-near",) and policy.action == "overlay"


def test_an_edit_moves_the_concept_farther_than_what_it_keeps() -> None:
    family = built("emoji")
    model = ImageModel(family, name="tiny", architecture="tiny")
    edit = fitted(family, Uce("a banana", keep=10.0), least_share=0.0)
    share = moved(model, edit, ["a knife"])
    text = family.encode(["a knife"])
    tokens = text.states["text"][text.masks["text"]]
    layers = text_projections(family.cross_attention())
    expected = [
        float((tokens @ delta.T).norm() / (tokens @ layers[name].weight.T).norm())
        for name, delta in deltas(edit).items()
    ]
    assert share == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert share > moved(model, edit, ["a red table"]) > 0.0


def test_prompts_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Remembering(built("emoji"), name="tiny", architecture="tiny")
    first = model.encode(["a knife", "a cat"])
    monkeypatch.setattr(ImageModel, "encode", _never)
    assert model.encode(["a knife", "a cat"]) is first
    with pytest.raises(AssertionError):
        model.encode(["a cat"])


def test_constants_take_the_place_of_the_defaults() -> None:
    class Asked:
        instead = "a banana"

        def closed_form(self, eraser: RealEra) -> RealEra:
            return eraser

    made = {
        name: cast(Any, make)(Asked())
        for name, make in SETTINGS["realera"].items()
        if not name.startswith("uce")
    }
    assert made["defaults"] == RealEra(Uce("a banana"))
    assert made["far-0.2"].far == 0.2 and len(set(made.values())) == len(made)


def _never(*_arguments: object) -> Any:
    raise AssertionError("done again")
