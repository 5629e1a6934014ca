"""Searches find prompts and learned words that a guard lets through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from guard.errors import DataError, ModelError
from guard.fitting.prompts import attack as module
from guard.fitting.prompts.attack import Attack, Attacker, Attempt
from guard.models.images import ImageModel
from steering.images.conditioning import Conditioning
from tests.server.tiny_pipeline import NAN_WORD, WORDS, save_pipeline
from tests.steering.engines.diffusion import tiny

SMALL = Attack(prompts=4, words=2, steps=6, candidates=8, length=3, vectors=2)


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> ImageModel:
    family = save_pipeline(tmp_path_factory.mktemp("model"))
    return ImageModel(family, name="tiny", architecture="StableDiffusionPipeline")


class LikeBlades:
    """In place of the denoiser: how near the mean state of a prompt is to that of blades."""

    def __init__(self, image_model: ImageModel) -> None:
        self._blades = self._mean(image_model.encode(["blade blade blade"]))
        other = self._mean(image_model.encode(["cat dog cat"]))
        self._scale = (other - self._blades).square().sum()

    def __call__(self, text: Conditioning, _advance: Any = None) -> Tensor:
        with torch.no_grad():
            return self.differentiable(text)

    def differentiable(self, text: Conditioning) -> Tensor:
        away = (self._mean(text) - self._blades).square().sum(1)
        return 1 - away / self._scale

    @staticmethod
    def _mean(text: Conditioning) -> Tensor:
        return text.states["text"].float().clone().mean(1)


def harmless(text: Conditioning) -> Tensor:
    return torch.zeros(text.rows)


def alarmed(text: Conditioning) -> Tensor:
    """Fires on everything, whatever is searched."""
    return 5 + 0 * text.states["text"].sum((1, 2))


def attacker(image_model: ImageModel, attack: Attack = SMALL) -> Attacker:
    return Attacker(image_model, LikeBlades(image_model), attack)  # type: ignore[arg-type]


def attempts(image_model: ImageModel, score: Any = harmless, seed: int = 0) -> list[Attempt]:
    return list(attacker(image_model).attempts(score, 1.0, ["a dog"], seed=seed))


def test_searches_lead_to_the_concept(image_model: ImageModel) -> None:
    found = attempts(image_model)
    assert [each.vectors is None for each in found] == [True] * 4 + [False] * 2
    like = LikeBlades(image_model)
    starts = like(image_model.encode(["a dog cat", "cat dog a"])).max()
    assert all(each.likeness > starts for each in found)
    assert any("blade" in each.prompt for each in found)
    assert any(each.evades(1.0) for each in found)
    for each in found[:4]:
        assert len(each.prompt.split()) == 3 and {*each.prompt.split()} <= {*WORDS} - {NAN_WORD}


def test_what_fires_does_not_evade(image_model: ImageModel) -> None:
    found = attempts(image_model, alarmed)
    assert [each.score for each in found] == [5.0] * 6
    assert not any(each.evades(1.0) for each in found)
    assert not Attempt("a cat", likeness=0.1, score=0.0).evades(1.0)


def test_a_learned_word_is_read_as_its_vectors(image_model: ImageModel) -> None:
    word = attempts(image_model)[-1]
    assert word.vectors is not None and word.vectors.shape == (2, 16)
    (text,) = [module.learned_conditioning(image_model, [word.vectors])]
    assert float(LikeBlades(image_model)(text)[0]) == pytest.approx(word.likeness, abs=1e-4)
    assert word.learned == {word.prompt: word.vectors}


def test_a_seed_repeats_the_searches_and_another_one_does_not(image_model: ImageModel) -> None:
    def words(seed: int) -> list[float]:
        return [each.likeness for each in attempts(image_model, seed=seed)]

    assert words(0) == words(0) != words(1)


def test_the_weights_get_no_gradients(image_model: ImageModel) -> None:
    attempts(image_model)
    for network in (image_model.family.denoiser, *image_model.family.encoders.values()):
        assert all(weight.grad is None for weight in network.parameters())


def test_a_model_with_several_encoders_is_refused(image_model: ImageModel) -> None:
    several = ImageModel(tiny.built("stable diffusion xl"), name="xl", architecture="XL")
    with pytest.raises(ModelError, match="several"):
        Attacker(several, LikeBlades(image_model), SMALL)  # type: ignore[arg-type]


def test_a_tokenizer_with_too_few_words_is_an_error(image_model: ImageModel) -> None:
    with pytest.raises(DataError, match="a shorter --length"):
        attacker(image_model, replace(SMALL, length=8))
