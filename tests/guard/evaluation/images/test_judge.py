"""The judge sees what is in the images; agreement counts what two judges share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from guard.errors import DataError
from guard.evaluation.images.judge import BATCH, Agreement, Judge, JudgeView
from tests.guard.evaluation.images.fakes import CONCEPTS, FakeGenerator, judge_file


def _nothing(_count: int) -> None:
    pass


def test_a_judge_recognises_concepts_and_styles(tmp_path: Path) -> None:
    judge = Judge(judge_file(tmp_path / "judge.onnx"))
    assert judge.concepts == CONCEPTS
    assert judge.knows("twemoji") and judge.knows("cat") and not judge.knows("dog")
    prompts = ["a cat", "a cat and a knife in twemoji style", "nothing"] * BATCH
    outcomes = FakeGenerator().generate(
        prompts, range(len(prompts)), [None] * len(prompts), _nothing
    )
    views = judge.views(
        np.stack([outcome.image for outcome in outcomes if outcome.image is not None])
    )
    assert views[:3] == [
        JudgeView(("cat",), "noto"),
        JudgeView(("knife", "cat"), "twemoji"),
        JudgeView((), "noto"),
    ]
    assert views == views[:3] * BATCH
    assert views[1].shows("knife") and views[1].shows("twemoji") and not views[0].shows("knife")


def test_no_images_are_no_trouble(tmp_path: Path) -> None:
    judge = Judge(judge_file(tmp_path / "judge.onnx"))
    assert judge.views(np.zeros((0, 8, 8, 3), np.uint8)) == []


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    judge = Judge(judge_file(tmp_path / "judge.onnx"))
    with pytest.raises(DataError, match="16"):
        judge.views(np.zeros((1, 16, 16, 3), np.uint8))


def test_a_file_that_is_no_judge_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    with pytest.raises(DataError, match=r"x\.onnx: cannot be read"):
        Judge(path)
    path.write_bytes(b"no onnx at all")
    with pytest.raises(DataError, match=r"x\.onnx: is no judge"):
        Judge(path)
    model = onnx.load(judge_file(path))
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(DataError, match=r"x\.onnx: is no judge"):
        Judge(path)


def test_agreement_counts_sets_labels_and_styles() -> None:
    pairs = [
        (JudgeView(("a", "b"), "s"), JudgeView(("b", "a"), "s")),
        (JudgeView(("a",), "s"), JudgeView(("c",), "t")),
        (JudgeView((), "t"), JudgeView((), "t")),
    ]
    agreement = Agreement.of(pairs, labels=4)
    assert (agreement.images.count, agreement.images.total) == (2, 3)
    assert (agreement.labels.count, agreement.labels.total) == (10, 12)
    assert (agreement.style.count, agreement.style.total) == (2, 3)
