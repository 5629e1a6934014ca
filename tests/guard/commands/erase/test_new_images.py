"""`guard new` for an image pipeline: from a name to files that `guard try` and `guard add` take.

The weights are random: this shows that the parts work together, not that a guard is any good.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from classifiers.training import Recipe
from guard.artifact import Artifact
from guard.cli import app
from guard.config.schema import load_config
from guard.data.concept import read_concept
from guard.data.prompts import ImagePrompt, read_rows
from guard.errors import DataError
from guard.fitting.images import latents
from guard.fitting.images.drafts import draft, evaluation, fit
from guard.fitting.prompts.search import Search
from steering.images.conditioning import Conditioning
from tests.server.tiny_pipeline import save_pipeline

REASON = "this pipeline has no attention to read"
METHODS = ("cgce", "latents", "irece")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_pipeline(folder)
    return folder


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is trained, and a denoiser of random weights is sure of every prompt."""
    monkeypatch.setattr(latents, "DRAWN", -math.inf)
    monkeypatch.setattr(latents, "UNDRAWN", math.inf)
    monkeypatch.setattr(draft, "likeness_of", lambda *_, **__: _every_other)
    monkeypatch.setattr(fit, "Recipe", partial(Recipe, steps=5))
    monkeypatch.setattr(fit, "SEARCH", Search(rounds=0))
    for name, value in {
        "PROMPTS": 100,
        "IMAGES": 50,
        "TRIALS": 8,
        "FOLDS": 2,
        "CLASSIFIER_STEPS": 5,
    }.items():
        monkeypatch.setattr(fit, name, value)
    for name in ("DIRECT", "PARAPHRASES", "HARD", "CLEAN", "MISTAKEN"):
        monkeypatch.setattr(draft, name, 3)
    monkeypatch.setattr(evaluation, "MOST_STEPS", 4)


def _every_other(text: Conditioning, _advance: object) -> Tensor:
    """One phrase is the concept, the next one is not."""
    return (torch.arange(text.rows) % 2).float()


def _new(model: Path | str, *arguments: object) -> Result:
    rates = ("--fpr", 0.5, "--near-fpr", 0.5, "--steps", 4)
    every = ["new", *arguments, "--model", model, *rates]
    return CliRunner().invoke(app, [str(each) for each in every])


def _report(out: Path) -> Any:
    return json.loads(out.with_name(f"{out.name}.report.json").read_text())


def test_a_name_gives_guards_a_concept_file_a_policy_and_a_report(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "guards" / "dog.1"
    made = _new(model, "object/dog", "--out", out)
    assert made.exit_code == 0, made.output
    report = _report(out)
    assert report["failed"] == {} and report["judgement"] in " ".join(made.stdout.split())
    for method in METHODS:
        meta = Artifact.load(out.with_name(f"dog.1-{method}.safetensors")).meta
        assert (meta.method, meta.concept) == (method, "object/dog")
        assert f"{method}_fired_near" in report["figures"]
    concept = read_concept(out.with_name("dog.1.concept.json"))
    assert concept.phrases.train[0] == "a dog" and len(concept.hard_negatives) >= 6
    rows = read_rows(out.with_name("dog.1.test.jsonl"), ImagePrompt)
    assert {row.kind for row in rows} >= {"direct", "hard", "clean"}
    assert len(report["tried"]) == len(rows) and {row.split for row in rows} == {"test"}
    assert Image.open(out.with_name("dog.1.png")).width > 300
    page = out.with_name("dog.1.report.html").read_text()
    assert "Judgement" in page and "data:image" in page

    png = tmp_path / "try.png"
    listed = str(out.with_name("dog.1.toml"))
    tried = CliRunner().invoke(app, ["try", listed, "a dog", "--out", str(png), "--json"])
    assert tried.exit_code == 0, tried.output
    assert len(json.loads(tried.stdout)["guards"]) == 3 and png.exists()
    config = tmp_path / "config.toml"
    config.write_text(f'[[models]]\nname = "m"\nsource = "{model}"\nengine = "diffusers"\n')
    added = CliRunner().invoke(app, ["add", listed, "--policy", "pets", "-c", str(config)])
    assert added.exit_code == 0, added.output
    assert len(load_config(config).policies["pets"].guards) == 3


def test_a_method_that_cannot_be_fitted_is_named_and_the_others_go_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise DataError(REASON)

    monkeypatch.setattr(fit, "fit_irece", refused)
    monkeypatch.setattr(fit, "fit_cgce", refused)
    out = tmp_path / "dog"
    made = _new(model, "dog", "--out", out, "--json")
    assert made.exit_code == 0, made.output
    report = json.loads(made.stdout)
    assert report["failed"] == dict.fromkeys(("irece", "cgce"), REASON)
    assert f"no irece: {REASON}" in report["judgement"]
    assert (tmp_path / "dog.toml").read_text().count("[[guards]]") == 1
    monkeypatch.setattr(fit, "fit_latents", refused)
    none = _new(model, "dog", "--out", tmp_path / "none")
    assert none.exit_code == 1 and "no guard of animal/dog can be fitted" in none.output
    assert "Traceback" not in none.output and not (tmp_path / "none.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["two\nlines"], "line breaks or control characters"),
        (["style/twemoji"], "a style has no words of its own"),
        (["dog", "--about", "nowhere.json"], "nowhere.json: cannot be read"),
        (["dog", "--judge", "nowhere.onnx"], "nowhere.onnx: cannot be read"),
        (["qwxyz"], "has no token of 'qwxyz'"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    model: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    made = _new(model, *arguments, "--out", tmp_path / "g")
    assert made.exit_code == 1
    (line,) = [line for line in made.stderr.splitlines() if line.startswith("error:")]
    assert message in line and "Traceback" not in made.output
    assert not list(tmp_path.iterdir())


def test_a_language_model_takes_no_options_of_images(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    made = _new(tmp_path, "dog")
    assert made.exit_code == 1 and "--steps is for image models" in made.output
