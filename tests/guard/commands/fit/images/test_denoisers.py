"""`guard fit` for the erasers that train a denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from guard.artifact import Artifact
from steering.engines.diffusion.families import Family
from tests.guard.commands.fit.images.concept_fits import CONCEPT, fit

QUICK = ("--count", "100", "--fpr", "0.5", "--near-fpr", "0.5", "--updates", "2", "--rate", "0.01")
IMAGES = ("--images", "2", "--steps", "3", "--guidance", "2", "--batch", "2", "--rank", "2")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("spm", ("--anchors", "random", "--surrogate", "a cat")),
        ("co-erasing", ("--tokens", "2", "--token-updates", "1")),
        ("doco", ("--warmup", "1", "--penalty", "0.001")),
        ("ant", ("--boundary", "2", "--sum")),
        ("trce-stage2", ("--margin", "100", "--layers", "feed-forward,queries")),
        (
            "all-but-one",
            (
                "--instead",
                "a dog",
            ),
        ),
    ],
)
def test_each_writes_a_gated_overlay_of_the_denoiser(
    method: str, options: tuple[str, ...], model: tuple[Path, Family], tmp_path: Path
) -> None:
    result = fit(method, tmp_path, model[0], *QUICK, *IMAGES, *options)
    assert result.exit_code == 0, result.output
    assert "usable" in result.output
    settings = cast(dict[str, Any], Artifact.load(tmp_path / "g.safetensors").meta.settings)
    assert settings["source"] == method and settings["gated"] is True
    assert not any(":" in of[0] for of in settings["groups"].values())
    assert ("full_score" in settings) == (method == "spm")
    assert ("zeroed" in settings) == (method == "doco")
    assert settings["training"]["project"] == (method not in ("ant", "co-erasing"))
    if method in ("doco", "trce-stage2", "all-but-one"):
        named = settings["training"].get("instead") or settings["training"]["anchor"]
        assert named == ("a dog" if method == "all-but-one" else CONCEPT["replacements"][0])
    assert not (tmp_path / "g.parts").exists()


def test_as_published_it_acts_on_every_prompt(model: tuple[Path, Family], tmp_path: Path) -> None:
    result = fit("spm", tmp_path, model[0], *QUICK, *IMAGES, "--ungated")
    assert result.exit_code == 0, result.output
    settings = Artifact.load(tmp_path / "g.safetensors").meta.settings
    assert settings["gated"] is False and "full_score" not in settings


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--layers", "attn2"), "--layers: 'attn2' is no kind of layer: give some of"),
        (("--rank", "200"), "a rank of 200 is larger than that of"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, ...], line: str, model: tuple[Path, Family], tmp_path: Path
) -> None:
    result = fit("all-but-one", tmp_path, model[0], *QUICK, *IMAGES, *options)
    assert result.exit_code == 1 and "Traceback" not in result.stderr
    (told,) = [row for row in result.stderr.splitlines() if row.startswith("error: ")]
    assert line in told


def test_kinds_of_layers_are_checked_before_a_model_is_loaded(tmp_path: Path) -> None:
    result = fit("spm", tmp_path, "no-such-model", "--layers", "nothing")
    assert result.exit_code == 1 and "is no kind of layer" in result.stderr


def test_a_transport_without_a_gate_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    result = fit("spm", tmp_path, "no-such-model", "--transport", "--ungated")
    assert result.exit_code == 1 and "follows the score of a gate" in result.stderr
