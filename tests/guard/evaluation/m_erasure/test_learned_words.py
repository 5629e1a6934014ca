"""A word learned from images of a tiny random model: that the plumbing holds, no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from guard.errors import DataError, ModelError
from guard.evaluation.m_erasure.denoising import denoising_loss
from guard.evaluation.m_erasure.learned_words import WORD, TextualInversion, learn
from steering.engines.diffusion.families import Family
from steering.images.conditioning import Conditioning
from tests.steering.engines.diffusion import tiny

SETTINGS = TextualInversion(start="cat", steps=40, batch=4, rate=0.3)
FEW = replace(SETTINGS, steps=3)


@pytest.fixture(scope="module", params=["emoji", "pixart"])
def family(request: pytest.FixtureRequest) -> Family:
    return tiny.built(str(request.param))


def latents(family: Family, count: int = 4) -> Tensor:
    return family.unpacked(family.noise(range(count)))


def test_the_loss_falls_and_no_weight_moves(family: Family) -> None:
    before = tiny.weights_hash(family.pipeline)
    wanted = [p.requires_grad for p in family.denoiser.parameters()]
    # a prediction that depends on nothing but the word
    goal = torch.linspace(-1, 1, 24)

    def predict(inputs: Tensor, timesteps: Tensor, text: Conditioning) -> Tensor:
        states = text.states[family.readers[0].stream][:, 1, :24]
        away = (states - goal).square().mean()
        return inputs * 0 + away

    learned = learn(family, 0 * latents(family), SETTINGS, loss=partial(denoising_loss, predict))
    assert learned.vectors.shape == (1, family.embedding_limits.width)  # type: ignore[union-attr]
    real = learn(family, latents(family), FEW)
    assert not torch.equal(real.vectors, learned.vectors) and not real.vectors.requires_grad
    assert len(learned.losses) == 40
    assert sum(learned.losses[-5:]) < sum(learned.losses[:5])
    assert tiny.weights_hash(family.pipeline) == before
    assert [p.requires_grad for p in family.denoiser.parameters()] == wanted
    assert all(p.grad is None for p in family.denoiser.parameters())


def test_the_denoisers_gradient_lowers_its_loss() -> None:
    """On one image, over and over, under a model that was taught what it should say."""
    family = tiny.built("emoji")
    (sample,) = latents(family, 1)
    first = learn(family, sample[None], replace(SETTINGS, steps=60, rate=0.3, batch=8))
    assert sum(first.losses[-20:]) < sum(first.losses[:20])


def test_a_seed_gives_the_same_word_and_another_one_another(family: Family) -> None:
    given = latents(family)
    first, second = (learn(family, given, FEW) for _ in range(2))
    assert torch.equal(first.vectors, second.vectors) and first.losses == second.losses
    assert not torch.equal(first.vectors, learn(family, given, replace(FEW, seed=1)).vectors)


def initial(family: Family, settings: TextualInversion) -> Tensor:
    return learn(family, latents(family), replace(settings, steps=1, rate=0.0)).vectors


def test_it_begins_as_a_word_or_as_words_of_the_vocabulary(family: Family) -> None:
    assert family.embeddings is not None
    table = family.embeddings.detach()
    cat, dog = (table[4 + tiny.WORDS.index(word)] for word in ("cat", "dog"))
    three = initial(family, replace(FEW, start="cat dog", vectors=3))
    begins = family.readers[0].tokenizer("cat dog", add_special_tokens=False).input_ids
    assert len(begins) == 2 and torch.equal(three, torch.stack([cat, dog, cat]))
    sampled = initial(family, replace(FEW, start=None, vectors=2))
    assert all(bool((table == vector).all(1).any()) for vector in sampled)
    again = initial(family, replace(FEW, start=None, vectors=2, seed=3))
    assert not torch.equal(sampled, again)


def test_another_loss_replaces_the_bare_one(family: Family) -> None:
    row_counts: list[int] = []

    def predict(inputs: Tensor, timesteps: Tensor, text: Conditioning) -> Tensor:
        row_counts.append(text.rows)
        return inputs + text.states[family.readers[0].stream].mean()

    learn(family, latents(family), FEW, loss=partial(denoising_loss, predict))
    assert row_counts == [4, 4, 4]


def test_progress_is_reported(family: Family) -> None:
    counts: list[object] = []

    def stages(stage: str, total: int) -> Callable[[int], None]:
        counts.append(total)
        return counts.append

    learn(family, latents(family), FEW, stages=stages)
    assert counts == [3, 1, 1, 1]


def test_unsupported_models_are_refused(family: Family) -> None:
    with pytest.raises(DataError, match="images"):
        learn(family, latents(family)[:0], FEW)
    with pytest.raises(DataError, match="no token"):
        learn(family, latents(family), replace(FEW, start=""))
    with pytest.raises(ModelError, match="several"):
        learn(tiny.built("stable diffusion xl"), torch.zeros(1, 4, 8, 8), FEW)
    half = tiny.built("emoji")
    half.denoiser.half()
    with pytest.raises(ModelError, match="float32"):
        learn(half, latents(half), FEW)


def test_weights_that_took_gradients_do_so_again_after_a_failure(family: Family) -> None:
    def failing(inputs: Tensor, timesteps: Tensor, text: Conditioning) -> Tensor:
        assert not any(p.requires_grad for p in family.denoiser.parameters())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        learn(family, latents(family), FEW, loss=partial(denoising_loss, failing))
    assert all(p.requires_grad for p in family.denoiser.parameters())
    assert WORD not in family.readers[0].tokenizer.get_vocab()
