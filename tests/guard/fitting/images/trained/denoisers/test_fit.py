"""Erasers of denoisers on tiny pipelines: what is trained acts on its rows, and on those alone."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from guard.artifact import Artifact
from guard.errors import DataError, ModelError
from guard.fitting.checkpoints import Checkpoints
from guard.fitting.images.trained.denoisers.ant import Ant
from guard.fitting.images.trained.denoisers.kinds import kinds_in
from guard.fitting.images.trained.denoisers.layers import layers_of
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.hidden.rows import RowGuard
from steering.images.stacks import ImageStacks
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard
from steering.methods.stacking import MethodGuard
from tests.guard.fitting.images.trained.denoisers.erasers import (
    ERASERS,
    TRAINING,
    WAYS,
    fitted,
)
from tests.steering.engines.diffusion import tiny


def images(family: Family, artifact: Artifact | None = None) -> Tensor:
    """Latents of two rows; with an artifact the first carries it, the second does not."""
    stacks, guards = ImageStacks(), ()
    if artifact is not None:
        guard = FittedGuard("g", artifact.tensors, artifact.meta.settings)
        stacks = ImageStacks.of([MethodGuard(METHODS["overlay"], guard)])
        guards = (RowGuard("g", threshold=0.0, strength=1.0, acts=True),)
    engine = DiffusionEngine(family, stacks, capacity=2)
    try:
        start = ImageStart("a knife", seed=1, steps=4, guidance=3.0)
        engine.start([replace(start, guards=guards), replace(start, seed=2)])
        while not (complete := engine.step()):
            pass
        return engine.finished(complete)
    finally:
        engine.close()


@pytest.mark.parametrize("eraser", ERASERS)
@pytest.mark.parametrize("name", ["emoji", "stable diffusion"])
def test_a_trained_denoiser_is_an_overlay_of_its_rows(name: str, eraser: str) -> None:
    family = tiny.shared(name)
    before, hash_before = images(family), tiny.weights_hash(family.pipeline)
    artifact = fitted(name, ERASERS[eraser])
    assert tiny.weights_hash(family.pipeline) == hash_before
    assert torch.equal(images(family), before)
    settings = artifact.meta.settings
    assert (artifact.meta.method, settings["source"]) == ("overlay", eraser)
    layers = {
        layer for of in cast(dict[str, list[str]], settings["groups"]).values() for layer in of
    }
    kinds = layers_of(family)
    assert layers <= {layer for kind in ERASERS[eraser].kinds for layer in kinds[kind]}
    guarded = images(family, artifact)
    assert not torch.equal(guarded[0], before[0]) and torch.equal(guarded[1], before[1])
    training = cast(dict[str, Any], settings["training"])
    assert (training["steps"], training["rank"], training["project"]) == (4, 2, True)


@pytest.mark.parametrize("name", ["pixart", "stable diffusion 3", "stable diffusion xl"])
def test_families_of_other_shapes_are_trained_too(name: str) -> None:
    for eraser in ("spm", "all-but-one"):
        assert fitted(name, ERASERS[eraser]).meta.settings["source"] == eraser


@pytest.mark.parametrize("eraser", ERASERS)
def test_a_fit_that_was_killed_goes_on_to_the_same_guard(
    eraser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guard.fitting.overlays.training.EVERY", 3)
    training = replace(TRAINING, steps=5)
    whole = fitted("stable diffusion", ERASERS[eraser], training)
    calls: list[str] = []

    def keeping(of: str) -> Checkpoints:
        calls.append(of)
        return Checkpoints(tmp_path / "g.safetensors", of)

    class Killed(Exception):
        pass

    def killed(*_arguments: Any) -> float:
        if len(calls) == 5:
            raise Killed
        calls.append("update")
        return update(*_arguments)

    from guard.fitting.overlays import training as loop

    update = loop._update
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_update", killed)
        with pytest.raises(Killed):
            fitted("stable diffusion", ERASERS[eraser], training, keeping=keeping)
    assert (tmp_path / "g.parts" / "training.safetensors").is_file()
    again = fitted("stable diffusion", ERASERS[eraser], training, keeping=keeping)
    assert again.meta.tensors_sha256 == whole.meta.tensors_sha256
    assert again.meta.settings == whole.meta.settings
    assert calls[0] == calls[-1] and calls.count("update") == 4


def test_the_state_of_another_base_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("guard.fitting.overlays.training.EVERY", 2)

    def keeping(of: str) -> Checkpoints:
        return Checkpoints(tmp_path / "g.safetensors", of)

    spm = ERASERS["spm"]
    fitted("stable diffusion", spm, keeping=keeping)
    other = fitted("emoji", spm, keeping=keeping)
    assert "is of another model" in caplog.text
    assert other.meta.tensors_sha256 == fitted("emoji", spm).meta.tensors_sha256


def test_layers_driven_to_zero_are_not_hooked_and_are_named() -> None:
    spm = ERASERS["spm"]
    every = fitted("stable diffusion", spm).meta.settings
    assert "zeroed" not in every
    # a few layers have gradients enough to outgrow what shortens all of them alike
    training = replace(TRAINING, steps=12, penalty=14.0)
    few = fitted("stable diffusion", spm, training).meta.settings
    groups = cast(dict[str, list[str]], few["groups"])
    layers = {layer for of in groups.values() for layer in of}
    zeroed = set(cast(list[str], few["zeroed"]))
    assert zeroed and layers and not zeroed & layers
    assert len(layers) < len(cast(dict[str, list[str]], every["groups"]))


# -- bad input -------------------------------------------------------------------------------------


def test_a_rank_over_a_layers_is_refused() -> None:
    with pytest.raises(DataError, match=r"a rank of 64 is larger than that of .*: give a --rank"):
        fitted("emoji", ERASERS["spm"], replace(TRAINING, rank=64))


def test_kinds_of_layers_are_checked() -> None:
    assert kinds_in("queries, cross-attention") == ("cross-attention", "queries")
    for text in ("queries,attn2", "", " , "):
        with pytest.raises(DataError, match="--layers: .* is no kind of layer: give some of cross"):
            kinds_in(text)
    with pytest.raises(
        DataError, match="has no layers of the kind self-attention .*: give --layer"
    ):
        fitted("stable diffusion 3", ERASERS["spm"], kinds=("self-attention",))


def test_a_training_that_runs_away_is_an_error() -> None:
    with pytest.raises(DataError, match="not finite: try a lower rate|has met NaN"):
        fitted("emoji", ERASERS["spm"], replace(TRAINING, rate=1e30))


def test_a_boundary_that_no_step_crosses_is_refused() -> None:
    with pytest.raises(DataError, match="none of 4 steps has a noise level of 100000 to inf: give"):
        fitted("stable diffusion", Ant(boundary=1e5, trajectories=WAYS))


def test_a_model_of_videos_has_no_discriminator() -> None:
    with pytest.raises(ModelError, match="reads images, and this model makes videos"):
        fitted("wan", ERASERS["doco"])


def test_every_kind_of_layer_is_found_by_structure() -> None:
    kinds = layers_of(tiny.shared("stable diffusion"))
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert f"{block}.attn1.to_q" in kinds["self-attention"]
    assert f"{block}.attn2.to_q" in kinds["cross-attention"]
    assert f"{block}.attn2.to_q" in kinds["queries"]
    assert f"{block}.attn2.to_out.0" in kinds["cross-attention"]
    assert all(layer.endswith(".attn2.to_q") for layer in kinds["queries"])
    assert f"{block}.ff.net.2" in kinds["feed-forward"]
    assert "down_blocks.0.attentions.0.proj_in" in kinds["projection"]
    assert "down_blocks.0.resnets.0.conv1" in kinds["convolution"]
    every = [layer for kind, of in kinds.items() if kind != "queries" for layer in of]
    assert len(every) == len(set(every)) and "conv_in" not in every


def test_settings_of_a_loss_and_of_the_loop_have_names_of_their_own() -> None:
    """The artifact has both in one table."""
    loop = {field.name for field in fields(TRAINING)}
    for eraser in ERASERS.values():
        assert not loop & set(eraser.__dataclass_fields__)
