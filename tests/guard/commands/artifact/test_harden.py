"""`guard harden` on a tiny pipeline of random weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from classifiers.training import Recipe
from guard.artifact import Artifact
from tests.guard.commands.fit.images.concept_fits import CONCEPT
from tests.guard.commands.running import run
from tests.guard.evaluation.images.fakes import CONCEPTS, judge_file
from tests.server.tiny_pipeline import SIDE, save_pipeline

FIT = ("--count", "100", "--folds", "2")
"""What the fit and the hardening have in common."""
RATES = ("--fpr", "0.1", "--near-fpr", "0.3")
SHORT = (
    *("--rounds", "1", "--prompts", "2", "--words", "1"),
    *("--steps", "1", "--until", "0", "--length", "4"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, a concept file and a fitted guard."""
    folder = tmp_path_factory.mktemp("harden")
    save_pipeline(folder / "model")
    (folder / "knife.json").write_text(json.dumps(CONCEPT))
    other = {**CONCEPT, "name": "object/dagger"}
    (folder / "dagger.json").write_text(json.dumps(other))
    # a short fit does
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("classifiers.training.Recipe", partial(Recipe, steps=80))
        fitted = run(
            *("fit", "cgce", "--model", folder / "model", "--concept-file", folder / "knife.json"),
            *("--out", folder / "knife.safetensors", "--rounds", "0", *FIT, *RATES),
        )
    assert fitted.exit_code == 0, fitted.output
    return folder


def harden(folder: Path, *options: str | Path, concept: str = "knife.json", out: str = "h") -> Any:
    return run(
        *("harden", folder / "knife.safetensors", "--concept-file", folder / concept),
        *("--out", folder / f"{out}.safetensors", *options),
    )


def test_it_writes_a_guard_and_a_row_of_each_round(folder: Path) -> None:
    result = harden(folder, *SHORT, *FIT, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    rounds = report["calibration"]["rounds"]
    assert [row["searches"] for row in rounds] == [3] * len(rounds)
    artifact = Artifact.load(folder / "h.safetensors")
    assert artifact.digest == report["digest"]
    original = Artifact.load(folder / "knife.safetensors")
    assert report["calibration"]["hardened_from"] == original.digest
    assert "rounds of attack and training" in (folder / "h.report.html").read_text("utf-8")
    assert not (folder / "h.parts").exists()


def test_a_judge_says_which_attacks_count(folder: Path) -> None:
    judge = judge_file(folder / "judge.onnx", blind_to=CONCEPTS.index("knife"), side=SIDE)
    options = ("--judge", judge, "--image-steps", "1", "--guidance", "1")
    result = harden(folder, *SHORT, *FIT, *options, out="judged")
    assert result.exit_code == 0, result.output
    rounds: Any = Artifact.load(folder / "judged.safetensors").meta.calibration["rounds"]
    row = rounds[0]
    assert row["prompts_through"] == row["words_through"] == 0


@pytest.mark.parametrize(
    ("options", "concept", "out", "message"),
    [
        ((), "knife.json", "knife", "give another --out"),
        ((), "dagger.json", "h2", "give the concept file of its fit"),
        (("--prompts", "0", "--words", "0"), "knife.json", "h2", "nothing to search"),
        (("--folds", "3"), "knife.json", "h2", "give --folds 2"),
        (("--count", "400"), "knife.json", "h2", "--count, --folds, --seed"),
    ],
)
def test_wrong_options_are_told(
    folder: Path, options: tuple[str, ...], concept: str, out: str, message: str
) -> None:
    given = dict(zip(FIT[::2], FIT[1::2], strict=True)) | dict(
        zip(options[::2], options[1::2], strict=True)
    )
    flat = [word for pair in given.items() for word in pair]
    result = harden(folder, *flat, concept=concept, out=out)
    assert result.exit_code == 1 and message in result.output, result.output
