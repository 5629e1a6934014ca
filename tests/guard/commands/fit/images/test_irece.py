"""`guard fit irece` on a tiny pipeline: from a concept file to a guard that acts under a policy.

The weights are random: this shows that the parts work together, not that a guard is any good.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from guard.artifact import Artifact
from guard.cli import app
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.fitting.images import latents
from guard.fitting.judgement import DRAFT
from guard.models.images import ImageModel
from guard.plans.images import ImagePlans
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from tests.guard.commands.fit.images import concept_fits
from tests.guard.commands.fit.images.concept_fits import CONCEPT

OPTIONS = ("--count", "50", "--folds", "2", "--steps", "2", "--guidance", "1", "--looks", "2")
RATES = ("--fpr", "0.5", "--near-fpr", "0.5", "--trials", "8")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    concept_fits.shorten(monkeypatch)


fit = partial(concept_fits.fit, "irece")


def test_a_policy_uses_the_artifact_and_breaks_the_concept(
    tmp_path: Path, model: tuple[Path, Family]
) -> None:
    folder, family = model
    result = fit(tmp_path, folder, *OPTIONS, *RATES, "--json")
    assert result.exit_code == 0, result.output
    artifact, report = Artifact.load(tmp_path / "g.safetensors"), json.loads(result.stdout)
    meta = artifact.meta
    assert report["method"] == meta.method == "irece" and report["digest"] == artifact.digest
    assert report["settings"] == meta.settings and report["calibration"] == meta.calibration
    assert (meta.settings["steps"], meta.settings["guidance"]) == (2, 1.0)
    assert (
        meta.model
        == ImageModel(
            family, name=str(folder), architecture="StableDiffusionPipeline"
        ).fitted_pipeline()
    )
    assert meta.calibration["prompts"] == {"unsafe": 50, "far": 100, "near": 25}
    assert {tensor.shape[0] for n, tensor in artifact.tensors.items() if "weight" in n} == {2}
    # whatever it sees is the concept
    config = Config(
        guards=(GuardConfig(name="break", artifact=tmp_path / "g.safetensors", threshold=-1e6),),
        policies={"p": PolicyConfig(guards=("break",), action="perturb")},
    )
    plans = ImagePlans(config, family, name="tiny")
    assert (
        plans.stacks.latents[0].names == ("break",)
        and plans["p"].inspects_images
        and not plans["p"].refuses
    )
    engine = DiffusionEngine(family, plans.stacks, capacity=1)
    engine.start([ImageStart("a cat", steps=3, guards=plans["p"].rows())])
    while not engine.step():
        pass
    reading = engine.readings(0)["break"]
    engine.close()
    assert reading.fired and reading.steps and reading.area and reading.after is not None
    # the concept is still there, of course: the fallback decides
    assert plans["p"].decide({"break": reading}) == "block"

    again = fit(tmp_path, folder, *OPTIONS, *RATES, out="again.safetensors")
    assert again.exit_code == 0, again.output
    assert Artifact.load(tmp_path / "again.safetensors").digest == artifact.digest
    for heading in ("held-out images", "first inspection", "localization", "replacement and first"):
        assert heading in again.stdout
    written = f"wrote {tmp_path / 'again.safetensors'} and {tmp_path / 'again.report.html'}"
    judgement, last = again.stdout.splitlines()[-2:]
    report = json.loads((tmp_path / "again.report.json").read_text())
    assert last == written and judgement == report["judgement"]
    assert judgement.startswith(("usable", "not usable"))

    inspected = CliRunner().invoke(app, ["inspect", str(tmp_path / "g.safetensors"), "--json"])
    described = json.loads(inspected.stdout)
    assert described["seams"] == ["attention", "latent"] and described["settings"]["reads"]
    table = CliRunner().invoke(app, ["inspect", str(tmp_path / "g.safetensors")]).stdout
    assert "settings.reads" in table and "keys0.attention" in table


def test_a_draft_takes_no_training_against_attackers(
    tmp_path: Path, model: tuple[Path, Family]
) -> None:
    result = fit(tmp_path, model[0], *OPTIONS, *RATES, "--quick", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["calibration"]["hidden"] == 0.0 and report["judgement"].endswith(DRAFT)


@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        # refused before a model is loaded
        (("--model", "nowhere"), {"ending": True}, "is a style, which has no position in an image"),
        ((*OPTIONS, *RATES[:2], "--near-fpr", "0.001"), {}, "needs 999"),
    ],
)
def test_a_fault_is_reported_in_one_line(
    tmp_path: Path,
    model: tuple[Path, Family],
    options: tuple[str, ...],
    changed: dict[str, Any],
    message: str,
) -> None:
    result = fit(tmp_path, model[0], *options, concept=CONCEPT | changed)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert message in line and "Traceback" not in result.output
    assert not (tmp_path / "g.safetensors").exists()


def test_a_name_that_is_no_artifacts_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    result = fit(tmp_path, "nowhere", out="g.pt")
    assert result.exit_code == 1 and "ends in .safetensors" in result.stderr


def test_a_denoiser_that_is_sure_of_no_prompt_is_reported(
    tmp_path: Path, model: tuple[Path, Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "DRAWN", math.inf)
    monkeypatch.setattr(latents, "UNDRAWN", -math.inf)
    result = fit(tmp_path, model[0], *OPTIONS, *RATES)
    assert result.exit_code == 1 and "sure of no prompt" in result.stderr
