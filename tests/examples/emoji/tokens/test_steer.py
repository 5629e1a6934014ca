"""The steering guard of the autoregressive model: its directions, its trials, its artifact."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from examples.emoji.tokens import steer
from examples.emoji.tokens.erase import image_states
from examples.emoji.tokens.pairs import captions_with, drawn_pairs, forget_rows, retain_rows
from guard.artifact import Artifact
from guard.fitting.gated.token_gate import TokenGate
from guard.models.token_images import TokenImageModel
from steering.methods.fitted import FittedGuard
from steering.methods.steer import loaded
from tests.server.tiny_token_images import COLUMNS, ROWS, save_model

COUNT = ROWS * COLUMNS


@pytest.fixture
def model(tmp_path: Path) -> TokenImageModel:
    save_model(tmp_path, longest=160)
    return TokenImageModel.load(str(tmp_path), device="cpu")


def test_a_direction_is_the_mean_difference_of_matching_tokens(model: TokenImageModel) -> None:
    away = steer.directions(model, "knife", 3)
    assert away.shape == (model.chat.depth, model.chat.width)
    pairs = drawn_pairs(model, [*captions_with("knife", 3, 2)])
    norm = model.chat.model.model.norm
    model.chat.model.model.norm = torch.nn.Identity()  # the state after the last layer
    expected = sum(
        (
            image_states(model.chat.model, pair.instead, pair.image)
            - image_states(model.chat.model, pair.asked, pair.image)
        )
        .detach()
        .mean(0)
        for pair in pairs
    )
    model.chat.model.model.norm = norm
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(away[-1], expected / 3, rtol=1e-3, atol=1e-4)


class Judge:
    """Finds the concept in images whose first pixel is that of the bare ones."""

    def __init__(self, _path: Path) -> None:
        self._bare: Any = None

    def views(self, images: Any) -> list[Any]:
        if self._bare is None:
            self._bare = images
        same = [bool((a == b).all()) for a, b in zip(images, self._bare, strict=True)]
        return [SimpleNamespace(shows=lambda label, s=s: s or label != "knife") for s in same]


def test_the_least_that_hides_the_concept_is_written(
    model: TokenImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = TokenGate((1,), torch.ones(1, model.chat.width), 0.5, 1)
    monkeypatch.setattr(TokenGate, "fitted", lambda *_args, **_kw: gate)
    monkeypatch.setattr(steer, "Judge", Judge)
    monkeypatch.setattr(steer, "PAIRS", 2)
    monkeypatch.setattr(steer, "TRIED", 3)
    monkeypatch.setattr(steer, "STRENGTHS", (1e-9, 10.0))
    out = tmp_path / "steer.safetensors"
    steer.fit(model, "knife", out)
    artifact = Artifact.load(out)
    settings = artifact.meta.settings
    # the first of the trials that change images: few tokens, after the layer that senses
    assert (settings["strength"], settings["act_layers"]) == (10.0, [1])
    guard = loaded(FittedGuard("g", artifact.tensors, settings))
    assert guard.placement.steps == COUNT // 4 and math.isfinite(float(guard.directions.sum()))
    assert out.with_suffix(".report.json").is_file()


def test_gates_are_fitted_on_captions_with_and_without_the_concept() -> None:
    forget, retain = forget_rows("knife", 30), retain_rows("knife", 60)
    assert [row.split for row in forget].count("validation") == 10
    assert len({row.prompt for row in retain}) == 60
    assert {row.kind for row in retain} == {"near", "far"}
    assert not any("knife" in row.prompt or "dagger" in row.prompt for row in retain)
