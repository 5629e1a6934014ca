"""From files to artifacts, as a user goes it; the models are tiny.

Random weights know nothing: this shows that the parts fit together, not that a guard is any good.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from guard.artifact import Artifact
from guard.cli import app
from guard.fitting.sparse import training
from guard.fitting.sparse.autoencoder import Autoencoders
from tests.guard.commands.fit.images.concept_fits import fit as fit_images
from tests.guard.fitting.steering.test_end_to_end import save_tokenizer, write_topic
from tests.server.tiny_pipeline import save_pipeline
from tests.steering.tiny import WIDTH, tiny_model

SMALL = ("--features", "48", "--active", "4", "--updates", "30")
RATES = ("--fpr", "0.4", "--near-fpr", "0.4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, and the two files. Whatever the model says is a leak."""
    base = tmp_path_factory.mktemp("sparse")
    save_tokenizer(base / "model")
    tiny_model().save_pretrained(base / "model")
    write_topic(base / "data")
    return base


def fit(folder: Path, out: str, *more: object, model: str = "model") -> Result:
    options = {
        "--model": folder / model,
        "--concept": "topic/t",
        "--forget": folder / "data" / "forget.jsonl",
        "--retain": folder / "data" / "retain.jsonl",
        "--out": folder / out,
    }
    flat = [str(part) for pair in options.items() for part in pair]
    return CliRunner().invoke(app, ["fit", "sparse", *flat, *RATES, *SMALL, *map(str, more)])


@pytest.fixture(scope="module")
def fitted(folder: Path) -> Artifact:
    done = fit(folder, "one.safetensors", "--layers", "2,3", "--erased", 8)
    assert done.exit_code == 0, done.output
    return Artifact.load(folder / "one.safetensors")


def test_an_artifact_has_the_chosen_rows_of_the_autoencoder(folder: Path, fitted: Artifact) -> None:
    settings: Any = fitted.meta.settings
    assert fitted.meta.method == "sparse" and fitted.meta.seams == ("hidden",)
    assert settings["act_layers"] == [2, 3] and max(settings["sense_layers"]) <= 2
    file = Autoencoders.load(folder / "one.autoencoder.safetensors")
    assert file.about.model == fitted.meta.model and file.about.places == ("2", "3")
    for place, layer in enumerate(("2", "3")):
        chosen = settings["features"][layer]
        assert 1 <= len(chosen) <= 8
        whole = file.by_place[layer].features
        for name, part in zip(("reads", "offsets", "cuts", "writes"), whole.parts, strict=True):
            np.testing.assert_array_equal(
                fitted.tensors[name][place][: len(chosen)], part[chosen].numpy()
            )
            # what fills up is never active
            assert not fitted.tensors[name][place][len(chosen) :].any()
    assert fitted.tensors["reads"].shape[2] == WIDTH
    report = json.loads((folder / "one.report.json").read_text())
    assert report["judgement"] and sum(trial["chosen"] for trial in report["trials"]) == 1
    assert {*report["calibration"]["autoencoder"]} == {"2", "3"}
    assert "features at layers 2, 3" in report["trials"][0]["label"]


def test_a_second_guard_takes_the_file_and_the_gate(
    folder: Path, fitted: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_update", None)
    file = folder / "one.autoencoder.safetensors"
    gate = folder / "one.safetensors"
    done = fit(folder, "two.safetensors", "--autoencoder", file, "--gate", gate)
    assert done.exit_code == 0, done.output
    second = Artifact.load(folder / "two.safetensors")
    assert second.meta.settings["act_layers"] == [2, 3]
    assert second.meta.calibration["gate_of"] == fitted.digest
    assert not (folder / "two.autoencoder.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (("--layers", "0,3"), "--layers 0,3: the gate decides after layer"),
        (("--layers", "2,4"), "has layers 0 to 3"),
        (("--layers", "two"), "give numbers of layers"),
        (("--active", "99"), "99 features cannot be active of 48"),
        (("--autoencoder", "a.bin"), "the name of such a file ends in .safetensors"),
        (("--autoencoder", "{folder}/new.safetensors"), "is the artifact that --out names"),
        (("--autoencoder", "{folder}/model/model.safetensors"), "is no sparse autoencoder"),
        (
            ("--autoencoder", "{folder}/one.autoencoder.safetensors", "--updates", "31"),
            "was trained with 30: leave the option out, or give another file",
        ),
    ],
)
def test_wrong_options_are_one_line(
    folder: Path, fitted: Artifact, more: tuple[str, ...], fault: str
) -> None:
    arguments = [part.format(folder=folder) for part in more]
    done = fit(folder, "new.safetensors", *arguments)
    assert done.exit_code == 1 and fault in done.output, done.output
    assert "Traceback" not in done.output


def test_an_autoencoder_of_another_model_is_refused(folder: Path, fitted: Artifact) -> None:
    save_tokenizer(folder / "other")
    tiny_model(seed=3).save_pretrained(folder / "other")
    file = folder / "one.autoencoder.safetensors"
    done = fit(folder, "new.safetensors", "--autoencoder", file, model="other")
    assert done.exit_code == 1 and "is of the model" in done.output, done.output


def test_a_guard_of_prompts_is_fitted_on_a_pipeline(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "model")
    options = ("--count", "100", *RATES, *SMALL, "--erased", "3", "--strength", "1.5", "--json")
    done = fit_images("sparse-prompt", tmp_path, tmp_path / "model", *options)
    assert done.exit_code == 0, done.output
    artifact = Artifact.load(tmp_path / "g.safetensors")
    settings: Any = artifact.meta.settings
    assert artifact.meta.seams == ("embedding",) and settings["gated"] is True
    assert settings["strength"] == 1.5 and settings["streams"] == ["text"]
    file = Autoencoders.load(tmp_path / "g.autoencoder.safetensors")
    chosen = settings["features"]["text"]
    assert 1 <= len(chosen) <= 3 and file.about.model == artifact.meta.model
    np.testing.assert_array_equal(
        artifact.tensors["reads.text"], file.by_place["text"].features.reads[chosen].numpy()
    )
    assert json.loads(done.stdout)["settings"]["autoencoder"]["text"]["active"] > 0
