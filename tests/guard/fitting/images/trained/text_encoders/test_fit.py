"""Erasers of text encoders on tiny pipelines: plumbing, and that each loss does what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.errors import DataError, ModelError
from guard.fitting.images.trained.noisy_images import ImageSettings
from guard.fitting.images.trained.text_encoders.advunlearn import AdvUnlearn
from guard.fitting.images.trained.text_encoders.blocks import blocks_of
from guard.fitting.images.trained.text_encoders.few_shot import FewShot
from guard.fitting.images.trained.text_encoders.fit import EncoderEraser, fit_text_encoder
from guard.fitting.images.trained.text_encoders.hirm import Hirm, category_of
from guard.fitting.overlays.training import Training
from guard.fitting.prompts.rates import PromptRates
from guard.models.images import ImageModel
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.prompts import EncoderOverlays
from steering.hidden.rows import RowGuard
from steering.images.stacks import ImageStacks
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard
from steering.methods.stacking import MethodGuard
from tests.steering.engines.diffusion import tiny

CONCEPT = Concept.model_validate(
    {
        "name": "object/knife",
        "phrases": {"train": ["a knife", "knife on the table"]},
        "hard_negatives": ["a cat", "a dog", "cat", "dog", "a cat and a dog", "a red table"],
        "replacements": ["a banana"],
    }
)
IMAGES = ImageSettings(count=4, steps=2, guidance=1.0)
ERASERS: dict[str, EncoderEraser] = {
    "hirm R": Hirm("R"),
    "hirm S": Hirm("S", "a banana", feed_forward=True),
    "few-shot": FewShot(images=IMAGES),
    "advunlearn": AdvUnlearn(attack_steps=2, images=IMAGES),
}
TRAINING = Training(rank=2, steps=4, rate=1e-2)


def silent(_what: str, _total: int) -> Callable[[int], None]:
    return lambda _count: None


def fitted(name: str, eraser: EncoderEraser, training: Training = TRAINING) -> Artifact:
    family = tiny.shared(name)
    model = ImageModel(family, name="tiny", architecture=type(family.pipeline).__name__)
    rates = PromptRates(0.5, 0.5)
    return fit_text_encoder(model, CONCEPT, None, rates, eraser, training, silent)


def states(family: Family, artifact: Artifact, prompts: list[str]) -> list[Tensor]:
    """Of each prompt: the first carries the guard, the others do not."""
    guard = FittedGuard("g", artifact.tensors, artifact.meta.settings)
    stacks = ImageStacks.of([MethodGuard(METHODS["overlay"], guard)])
    overlays = EncoderOverlays(family.encoders, stacks)
    carried = [[RowGuard("g", 0.0, 1.0)], *([] for _ in prompts[1:])]
    try:
        with overlays.on(carried), torch.no_grad():
            text = family.encode(prompts)
    finally:
        overlays.remove()
    return [
        torch.cat([s[row].flatten() for s in text.states.values()]) for row in range(len(prompts))
    ]


@pytest.mark.parametrize("eraser", ERASERS)
@pytest.mark.parametrize("name", ["emoji", "stable diffusion", "pixart"])
def test_a_trained_encoder_is_an_overlay_that_only_its_rows_see(name: str, eraser: str) -> None:
    family = tiny.shared(name)
    before = tiny.weights_hash(family.pipeline)
    artifact = fitted(name, ERASERS[eraser])
    assert tiny.weights_hash(family.pipeline) == before
    meta = artifact.meta
    assert (meta.method, meta.settings["source"]) == ("overlay", ERASERS[eraser].name)
    groups = cast(dict[str, list[str]], meta.settings["groups"])
    assert all(layers[0].startswith("text_encoder:") for layers in groups.values())
    with torch.no_grad():
        bare = family.encode(["a knife", "a knife", "a cat"])
    got = states(family, artifact, ["a knife", "a knife", "a cat"])
    plain = [torch.cat([s[r].flatten() for s in bare.states.values()]) for r in range(3)]
    assert not torch.equal(got[0], plain[0])
    assert torch.equal(got[1], plain[1]) and torch.equal(got[2], plain[2])
    training = cast(dict[str, Any], meta.settings["training"])
    assert training["steps"] == 4 and training["rank"] == 2 and training["loss"] > 0


@pytest.mark.parametrize("name", ["stable diffusion", "stable diffusion 3"])
def test_hirm_trains_the_first_block_alone(name: str) -> None:
    groups = cast(dict[str, list[str]], fitted(name, Hirm("R")).meta.settings["groups"])
    layers = {layer for of in groups.values() for layer in of}
    blocks = blocks_of(tiny.shared(name).encoders)
    # a pooled encoder may read its first tokens alone: what has no gradient is left out
    assert layers <= {layer for of in blocks.values() for layer in of[0].attention} and layers


def test_few_shot_trains_feed_forward_layers_and_the_last_attention() -> None:
    blocks = blocks_of(tiny.shared("stable diffusion").encoders)
    layers = FewShot().layers(blocks)
    first, last = blocks["text_encoder"]
    assert {*layers} == {*first.feed_forward, *last.feed_forward, *last.attention}
    assert len(AdvUnlearn().layers(blocks)) == 12


def test_the_error_is_not_raised_past_its_bound() -> None:
    """Where it is over the bound already, nothing is left to train."""
    with pytest.raises(DataError, match="has left every weight as it was"):
        fitted("emoji", FewShot(bound=0.5, keep=0.0, images=IMAGES))


def test_the_category_is_the_kind_of_the_concept() -> None:
    assert category_of(CONCEPT) == "an object"
    style = CONCEPT.model_copy(update={"name": "style/van-gogh"})
    assert category_of(style) == "a style"


@pytest.mark.parametrize("eraser", ["hirm R", "hirm S"])
def test_a_loss_falls(eraser: str) -> None:
    def loss(steps: int) -> float:
        training = replace(TRAINING, steps=steps)
        settings = fitted("stable diffusion", ERASERS[eraser], training).meta.settings
        return float(cast(dict[str, Any], settings["training"])["loss"])

    assert loss(30) < 0.98 * loss(1)


def test_prompts_that_are_kept_move_less() -> None:
    family, cats = tiny.shared("stable diffusion"), ["a cat", "a dog", "a red table"]
    with torch.no_grad():
        bare = family.encode(cats).states["text"]

    def change(keep: float) -> float:
        training = replace(TRAINING, steps=30)
        artifact = fitted("stable diffusion", Hirm("R", keep=keep), training)
        moved = [states(family, artifact, [cat])[0] for cat in cats]
        return float((torch.stack(moved) - bare.flatten(1)).square().sum())

    assert change(10.0) < 0.7 * change(0.0)


def test_the_same_seed_gives_the_same_guard() -> None:
    first, again = (fitted("emoji", ERASERS["advunlearn"]) for _ in range(2))
    assert first.meta.tensors_sha256 == again.meta.tensors_sha256
    other = fitted("emoji", ERASERS["advunlearn"], replace(TRAINING, seed=1))
    assert other.meta.tensors_sha256 != first.meta.tensors_sha256


def test_several_encoders_have_no_attacker() -> None:
    with pytest.raises(ModelError, match="for one text encoder, and this model has several"):
        fitted("stable diffusion xl", ERASERS["advunlearn"])


def test_a_training_that_runs_away_is_an_error() -> None:
    with pytest.raises(DataError, match="not finite: try a lower rate|has met NaN"):
        fitted("emoji", ERASERS["hirm R"], replace(TRAINING, rate=1e30))
