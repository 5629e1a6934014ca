"""`guard fit latents` on a tiny pipeline: from a concept file to an artifact that a policy takes.

The weights are random: this shows that the parts work together, not that a guard is any good.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from guard.artifact import Artifact
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.plans.images import ImagePlans
from steering.engines.diffusion.families import Family
from steering.fingerprint import fingerprint
from tests.guard.commands.fit.images import concept_fits
from tests.guard.commands.fit.images.concept_fits import CONCEPT

OPTIONS = ("--count", "50", "--folds", "2", "--steps", "1", "--guidance", "1")
RATES = ("--fpr", "0.5", "--near-fpr", "0.5")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    concept_fits.shorten(monkeypatch)


fit = partial(concept_fits.fit, "latents")


def test_an_artifact_is_written_that_a_policy_of_the_model_takes(
    tmp_path: Path, model: tuple[Path, Family]
) -> None:
    folder, family = model
    result = fit(tmp_path, folder, *OPTIONS, *RATES, "--json")
    assert result.exit_code == 0, result.output
    artifact, report = Artifact.load(tmp_path / "g.safetensors"), json.loads(result.stdout)
    meta = artifact.meta
    assert report["method"] == meta.method == "latents" and report["digest"] == artifact.digest
    assert report["settings"] == meta.settings and meta.settings["steps"] == 1
    assert meta.settings["guidance"] == 1.0
    assert report["calibration"] == meta.calibration
    assert meta.calibration["false_positive_rate"] == 0.5
    assert {len(tensor) for tensor in artifact.tensors.values()} == {2}
    assert meta.model.fingerprint == fingerprint(family.autoencoder)
    assert meta.calibration["prompts"] == {"unsafe": 50, "far": 100, "near": 25}
    config = Config(
        guards=(GuardConfig(name="look", artifact=tmp_path / "g.safetensors"),),
        policies={"p": PolicyConfig(guards=("look",))},
    )
    plans = ImagePlans(config, family, name="tiny")
    assert (
        plans.stacks.output.names == ("look",)
        and plans["p"].inspects_images
        and not plans["p"].refuses
    )


def test_without_json_held_out_figures_are_printed(
    tmp_path: Path, model: tuple[Path, Family]
) -> None:
    result = fit(tmp_path, model[0], *OPTIONS, *RATES)
    assert result.exit_code == 0, result.output
    assert "held-out images" in result.stdout and "recall" in result.stdout
    written = f"wrote {tmp_path / 'g.safetensors'} and {tmp_path / 'g.report.html'}"
    judgement, last = result.stdout.splitlines()[-2:]
    report = json.loads((tmp_path / "g.report.json").read_text())
    assert last == written and judgement == report["judgement"]
    assert judgement.startswith(("usable", "not usable"))


def test_a_style_is_refused(tmp_path: Path) -> None:
    result = fit(tmp_path, "nowhere", concept=CONCEPT | {"ending": True})
    assert result.exit_code == 1 and "is a style" in result.stderr
    assert not (tmp_path / "g.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "out", "message"),
    [
        # refused before a model is loaded
        (("--count", "50"), "g.pt", "ends in .safetensors"),
        ((*OPTIONS, "--fpr", "0.001"), "g.safetensors", "needs 999"),
    ],
)
def test_a_fault_is_reported_in_one_line(
    tmp_path: Path, model: tuple[Path, Family], options: tuple[str, ...], out: str, message: str
) -> None:
    result = fit(tmp_path, "nowhere" if out == "g.pt" else model[0], *options, out=out)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert message in line and "Traceback" not in result.output
    assert not (tmp_path / out).exists()
