"""Running `guard fit METHOD` on a tiny pipeline of random weights."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from classifiers.latents import LatentRecipe
from guard.cli import app
from guard.fitting.images import latents

CONCEPT: dict[str, Any] = {
    "name": "object/knife",
    "phrases": {"train": ["a knife", "a blade"]},
    "hard_negatives": [
        "dog cat",
        "dog a dog",
        "cat dog",
        "cat a cat",
        "a cat a dog",
        "a dog a cat",
    ],
    "replacements": ["dog dog"],
}


def fit(
    method: str,
    folder: Path,
    model: Path | str,
    *options: str,
    out: str = "g.safetensors",
    concept: dict[str, Any] = CONCEPT,
) -> Result:
    """The outcome of the command; files are in `folder`."""
    (folder / "knife.json").write_text(json.dumps(concept))
    arguments = ["fit", method, "--model", str(model), "--out", str(folder / out), *options]
    return CliRunner().invoke(app, [*arguments, "--concept-file", str(folder / "knife.json")])


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoiser of random weights is sure of every prompt, and training takes few steps."""
    monkeypatch.setattr(latents, "DRAWN", -math.inf)
    monkeypatch.setattr(latents, "UNDRAWN", math.inf)
    monkeypatch.setattr("classifiers.latents.LatentRecipe", partial(LatentRecipe, steps=5))
