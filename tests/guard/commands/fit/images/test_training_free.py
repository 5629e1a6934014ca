"""`guard fit` for the methods in closed form, and a fitted guide in a denoising loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from guard.artifact import Artifact
from guard.cli import app
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.hidden.rows import RowGuard
from steering.images.embedding import EmbeddingBank
from steering.images.stacks import ImageStacks
from steering.methods.fitted import FittedGuard
from steering.methods.safe_guidance import stack_negative
from tests.guard.commands.fit.images.concept_fits import fit
from tests.guard.evaluation.images.fakes import judge_file
from tests.server.tiny_pipeline import SIDE

CONCEPT = {
    "name": "object/knife",
    "phrases": {"train": ["a knife"]},
    "hard_negatives": ["a cat", "a dog", "cat", "dog", "a cat a dog", "a dog a cat"],
    "replacements": ["dog dog"],
}


def fitted(folder: Path, model: Path, *options: str) -> tuple[Artifact, dict[str, object]]:
    (folder / "knife.json").write_text(json.dumps(CONCEPT))
    out = folder / "guard.safetensors"
    arguments = ["fit", *options, "--model", str(model), "--out", str(out), "--json"]
    result = CliRunner().invoke(app, [*arguments, "--concept-file", str(folder / "knife.json")])
    assert result.exit_code == 0, result.output
    return Artifact.load(out), json.loads(result.stdout)


def test_a_negative_prompt_guard_acts_as_the_negative_prompt_of_a_request(
    tmp_path: Path, model: tuple[Path, Family]
) -> None:
    folder, family = model
    artifact, report = fitted(tmp_path, folder, "negative-prompt")
    assert report["method"] == "negative-prompt" and report["digest"] == artifact.digest
    guide = stack_negative([FittedGuard("g", artifact.tensors, artifact.meta.settings)])
    guard = RowGuard("g", 0.0, 1.0)

    def generated(*starts: ImageStart) -> NDArray[np.uint8]:
        engine = DiffusionEngine(
            family, ImageStacks(prompts=EmbeddingBank([guide]), guidance=(guide,)), capacity=2
        )
        engine.start(starts)
        while len(engine.step()) < len(starts):
            pass
        return engine.images(range(len(starts)))

    def row(**fields: object) -> ImageStart:
        return ImageStart(**({"prompt": "a cat", "seed": 3, "steps": 3, "guidance": 4.0} | fields))  # type: ignore[arg-type]

    guarded, beside = generated(row(guards=[guard]), row(seed=5))
    requested = generated(row(negative_prompt="a knife"))[0]
    bare = generated(row(), row(seed=5))
    assert np.abs(guarded.astype(int) - requested).max() <= 1
    assert np.abs(guarded.astype(int) - bare[0]).max() > 1
    assert np.array_equal(beside, bare[1])


def test_safe_guidance_has_the_requested_preset(tmp_path: Path, model: tuple[Path, Family]) -> None:
    options = ("safe-guidance", "--preset", "max", "--phrase", "a blade")
    artifact, report = fitted(tmp_path, model[0], *options)
    settings = artifact.meta.settings
    assert (settings["scale"], settings["warmup"], settings["phrase"]) == (5000.0, 0.0, "a blade")
    assert settings["gated"] is False and report["settings"] == settings


def test_a_gated_method_is_fitted_from_the_concept_file_alone(
    tmp_path: Path, model: tuple[Path, Family]
) -> None:
    options = ("nearest", "--count", "100", "--fpr", "0.5", "--near-fpr", "0.5", "--rank", "2")
    artifact, _ = fitted(tmp_path, model[0], *options)
    assert artifact.meta.seams == ("embedding",)
    assert artifact.tensors["basis.text"].shape == (1, 16)  # one phrase spans one direction
    assert artifact.meta.calibration["false_positive_rate"] == 0.5


def test_an_artifact_s_name_is_checked_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "knife.json").write_text(json.dumps(CONCEPT))
    arguments = ["fit", "nearest", "--model", "nowhere", "--out", str(tmp_path / "g.pt")]
    result = CliRunner().invoke(app, [*arguments, "--concept-file", str(tmp_path / "knife.json")])
    assert result.exit_code == 1 and "ends in .safetensors" in result.stderr


def test_uce_is_fitted_with_the_requested_settings(
    tmp_path: Path, model: tuple[Path, Family]
) -> None:
    options = ("uce", "--instead", "a dog", "--keep", "0.5", "--ridge", "2", "--rank", "1")
    artifact, report = fitted(tmp_path, model[0], *options)
    settings = artifact.meta.settings
    assert artifact.meta.seams == ("projection",) and report["method"] == "uce"
    assert (settings["instead"], settings["keep"], settings["ridge"]) == ("a dog", 0.5, 2.0)
    assert artifact.tensors["reads.0"].shape == (1, 16)
    assert settings["gated"] is False and report["calibration"] == {}


def test_a_gated_uce_has_a_threshold(tmp_path: Path, model: tuple[Path, Family]) -> None:
    options = ("uce", "--gated", "--count", "100", "--fpr", "0.5", "--near-fpr", "0.5")
    artifact, _ = fitted(tmp_path, model[0], *options)
    assert artifact.meta.settings["gated"] is True and artifact.meta.settings["instead"] == ""
    assert artifact.meta.calibration["false_positive_rate"] == 0.5
    assert "weights.text" in artifact.tensors


def test_every_closed_form_is_fitted_with_its_settings(
    tmp_path: Path, model: tuple[Path, Family]
) -> None:
    cases = {
        ("rece", "--rounds", "2", "--derive", "0.5"): {"derive": 0.5, "rounds": 2, "leaks": []},
        ("trce", "--token-weight", "0.5", "--keep", "0.2"): {
            "instead": "dog dog",
            "token_weight": 0.5,
        },
        ("realera", "--near", "0.9", "--directions", "3"): {"near": 0.9, "directions": 3},
    }
    for options, expected in cases.items():
        artifact, report = fitted(tmp_path, model[0], *options, "--least-share", "0")
        settings = artifact.meta.settings
        assert report["method"] == artifact.meta.method == options[0]
        assert {name: settings[name] for name in expected} == expected
        assert settings["gated"] is False and artifact.meta.seams == ("projection",)


def test_several_concepts_are_erased_by_one_edit_under_a_name_of_their_own(
    tmp_path: Path, model: tuple[Path, Family]
) -> None:
    cat = {"name": "animal/cat", "phrases": {"train": ["a cat"]}, "replacements": ["a dog"]}
    other = CONCEPT | cat | {"instead": ["a dog"], "hard_negatives": [*"abcdef"]}
    (tmp_path / "cat.json").write_text(json.dumps(other))
    also = ("--also", str(tmp_path / "cat.json"))
    artifact, report = fitted(tmp_path, model[0], "uce", *also, "--name", "objects/both")
    assert artifact.meta.concept == report["concept"] == "objects/both"
    assert artifact.meta.settings["instead"] == {"object/knife": "", "animal/cat": "a dog"}
    for options, fault in {
        also: "give --name",
        (*also, "--name", "both"): "give --name",
        ("--name", "objects/both"): "give --also too",
        (*also, "--name", "objects/both", "--gated"): "--gated is the gate of one concept",
    }.items():
        refused = fit("uce", tmp_path, "nowhere", *options)
        assert refused.exit_code == 1 and fault in " ".join(refused.stderr.split())


def test_concepts_are_preserved_by_phrase_and_by_file(
    tmp_path: Path, model: tuple[Path, Family]
) -> None:
    other = CONCEPT | {"name": "animal/cat", "phrases": {"train": ["cat knife", "a cat blade"]}}
    (tmp_path / "cat.json").write_text(json.dumps(other))
    ordinary, _ = fitted(tmp_path, model[0], "uce")
    preserved = ("--preserve", "a dog blade", "--preserve-file", str(tmp_path / "cat.json"))
    artifact, _ = fitted(tmp_path, model[0], "uce", *preserved)
    assert not np.array_equal(artifact.tensors["reads.0"], ordinary.tensors["reads.0"])
    clash = CONCEPT | {"name": "animal/cat"}
    (tmp_path / "cat.json").write_text(json.dumps(clash))
    result = fit("uce", tmp_path, model[0], *preserved)
    assert result.exit_code == 1 and "cannot be preserved too" in result.stderr


def test_contrastive_guidance_has_its_preset_and_what_replaces_it(
    tmp_path: Path, model: tuple[Path, Family]
) -> None:
    options = ("contrastive", "--preset", "trce", "--window", "0.5:", "--weight", "3")
    artifact, _ = fitted(tmp_path, model[0], *options)
    settings = artifact.meta.settings
    assert (settings["weight"], settings["sigma_low"], settings["sigma_high"]) == (3.0, 0.5, None)
    assert (settings["phrase"], settings["counterpart"]) == ("a knife", "dog dog")
    assert {"concept.text", "counterpart.text", "counterpart_mask.text"} <= {*artifact.tensors}
    single, _ = fitted(tmp_path, model[0], "contrastive")
    assert single.meta.settings["paired"] is False and "counterpart.text" not in single.tensors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--window", "3"), "'3' is not LOW:HIGH"),
        (("--window", "3:1"), "3 is over 1: the lower bound comes first"),
        (("--window", ":nan"), "noise levels lie in 0.."),
        (("--pair", "a dog"), "ant has no counterpart"),
    ],
)
def test_windows_and_pairs_that_cannot_be_are_named(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = fit("contrastive", tmp_path, "nowhere", *options)
    assert result.exit_code == 1 and message in result.stderr, result.output


def test_a_judge_must_know_the_concept(tmp_path: Path, model: tuple[Path, Family]) -> None:
    judge_file(tmp_path / "judge.onnx", side=SIDE)
    judge = ("--judge", str(tmp_path / "judge.onnx"))
    concept = CONCEPT | {"name": "object/blade"}
    result = fit("rece", tmp_path, model[0], *judge, concept=concept)
    assert result.exit_code == 1 and "the judge knows no 'blade': it knows knife" in result.stderr
    options = ("rece", *judge, "--images", "8", "--steps", "1", "--rounds", "2")
    artifact, _ = fitted(tmp_path, model[0], *options, "--least-share", "0")
    leaks = artifact.meta.settings["leaks"]
    assert isinstance(leaks, list) and len(leaks) == 2
