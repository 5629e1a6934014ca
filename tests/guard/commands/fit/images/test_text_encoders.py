"""`guard fit` for the erasers that train a text encoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.artifact import Artifact
from steering.engines.diffusion.families import Family
from tests.guard.commands.fit.images.concept_fits import fit

QUICK = ("--count", "100", "--fpr", "0.5", "--near-fpr", "0.5", "--updates", "3", "--rate", "0.01")
IMAGES = ("--images", "4", "--steps", "2", "--guidance", "1")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("hirm", ("--variant", "R", "--size", "3")),
        ("few-shot", IMAGES),
        ("advunlearn", (*IMAGES, "--attack-steps", "2", "--every", "2")),
    ],
)
def test_each_writes_a_gated_overlay_of_the_encoder(
    method: str, options: tuple[str, ...], model: tuple[Path, Family], tmp_path: Path
) -> None:
    result = fit(method, tmp_path, model[0], *QUICK, *options)
    assert result.exit_code == 0, result.output
    settings = Artifact.load(tmp_path / "g.safetensors").meta.settings
    assert settings["source"] == method and settings["gated"] is True
    assert all(of[0].startswith("text_encoder:") for of in settings["groups"].values())  # type: ignore[union-attr,index,call-overload]


def test_hirm_leads_to_the_kind_of_the_concept_by_default(
    model: tuple[Path, Family], tmp_path: Path
) -> None:
    result = fit("hirm", tmp_path, model[0], *QUICK, "--ungated")
    assert result.exit_code == 0, result.output
    settings = Artifact.load(tmp_path / "g.safetensors").meta.settings
    assert settings["training"]["category"] == "an object"  # type: ignore[index,call-overload]
    assert settings["gated"] is False
