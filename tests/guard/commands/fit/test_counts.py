"""Counts of prompts that rates need are refused before a model is loaded, with the option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.guard.commands.fit.images.concept_fits import fit
from tests.guard.commands.running import run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that passes for an image model, and cannot be loaded."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("cgce", ("--count", "100", "--fpr", "0.001"), "needs 999 held-out far prompts"),
        ("cgce", ("--fpr", "0.1", "--near-fpr", "0.001"), "or ask for a higher --near-fpr"),
        ("latents", ("--count", "50"), "needs 199 held-out far prompts, there are 100"),
        ("irece", ("--count", "50"), "a higher --count"),
        ("safree", ("--count", "100", "--fpr", "0.001"), "needs 999"),
        ("uce", ("--gated", "--fpr", "0.001"), "or ask for a higher --fpr"),
    ],
)
def test_fits_of_images(
    tmp_path: Path, model: Path, method: str, options: tuple[str, ...], message: str
) -> None:
    result = fit(method, tmp_path, model, *options)
    assert result.exit_code == 1 and message in result.stderr, result.output
    assert "cannot be loaded" not in result.stderr


def test_reference_images_are_looked_for_first(tmp_path: Path, model: Path) -> None:
    (tmp_path / "i.jsonl").write_text('{"image": "no.png", "concept": "knife"}')
    result = fit("irece", tmp_path, model, "--images", str(tmp_path / "i.jsonl"))
    assert result.exit_code == 1 and "no.png is no file" in result.stderr


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"split": "train"}, (), "the forget file has no prompts in the validation split"),
        ({"split": "train"}, ("--concept", "a\tb"), "--concept: holds control characters"),
        (None, ("--each", "subject"), "have no subject"),
        (None, ("--tokens", "image"), "--tokens image: needs images"),
        (None, ("--fpr", "0.001"), "with a higher --fpr"),
    ],
)
def test_steer(
    tmp_path: Path, row: dict[str, str] | None, options: tuple[str, ...], message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    rows = [row] if row else [{"split": "train"}, {"split": "validation"}]
    lines = [json.dumps({"prompt": "Who?", "facts": ["me"], **each}) for each in rows]
    (tmp_path / "forget.jsonl").write_text("\n".join(lines))
    concept = () if "--concept" in options else ("--concept", "a/b")
    files = ("--forget", tmp_path / "forget.jsonl", "--out", tmp_path / "g.safetensors")
    result = run("fit", "steer", "--model", folder, *concept, *files, *options)
    assert result.exit_code == 1 and message in result.stderr, result.output
    assert "cannot be loaded" not in result.stderr
