"""Perturbed images: likelier recall answers, within the bounds, by the model's preprocessing."""

from __future__ import annotations

import numpy as np
import pytest

from guard.errors import DataError
from guard.fitting.steering.perturbation import Perturbation, perturb
from guard.models.chat import TransformersChat
from tests.guard.fitting.steering.seeing import COLOURS, portrait, seeing_chat, silent

ANSWER = [9, 20, 31]
HOW = Perturbation(epsilon=8, steps=5)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> TransformersChat:
    return seeing_chat(tmp_path_factory.mktemp("seeing") / "model")


def _prompts(chat: TransformersChat) -> list:  # type: ignore[type-arg]
    texts = ("w10", "w11 w12 w13", "w14 w15")
    colours = [*COLOURS.values(), (90, 90, 90)]
    return [
        chat.prompt(text, [portrait(colour, i)])
        for i, (text, colour) in enumerate(zip(texts, colours, strict=True))
    ]


def test_the_answer_becomes_likelier_and_the_image_stays_in_its_bounds(
    chat: TransformersChat,
) -> None:
    prompts = _prompts(chat)
    answers = [ANSWER, ANSWER[:1], ANSWER]
    found = perturb(chat, prompts, answers, HOW, seed=0, progress=silent)
    for prompt, answer, image in zip(prompts, answers, found, strict=True):
        (item,) = prompt.media
        assert np.array_equal(image.clean, item.content)
        assert image.after < image.before
        change = image.perturbed.astype(int) - image.clean
        assert 0 < np.abs(change).max() <= 8
        # what an ordinary forward says of both images is what was reported
        for pixels, loss in ((image.clean, image.before), (image.perturbed, image.after)):
            again = chat.prompt(chat.text([]) or "w10", [pixels])
            asked = type(prompt)(prompt.tokens, again.media) if not prompt.positions else prompt
            ((_, losses),) = chat.losses([asked.extended(answer)])
            assert losses[-len(answer) :].mean() == pytest.approx(loss, abs=1e-3)


def test_the_same_seed_gives_the_same_images(chat: TransformersChat) -> None:
    prompts = _prompts(chat)[:1]

    def once(seed: int) -> np.ndarray:  # type: ignore[type-arg]
        (image,) = perturb(chat, prompts, [ANSWER], HOW, seed=seed, progress=silent)
        return image.perturbed

    assert np.array_equal(once(3), once(3))
    assert not np.array_equal(once(3), once(4))


def test_without_steps_the_image_is_only_noise_within_its_bounds(chat: TransformersChat) -> None:
    how = Perturbation(epsilon=0, steps=2)
    (image,) = perturb(chat, _prompts(chat)[:1], [ANSWER], how, seed=0, progress=silent)
    assert np.array_equal(image.clean, image.perturbed)
    assert image.before == pytest.approx(image.after)


def test_an_engine_without_gradients_is_refused(chat: TransformersChat) -> None:
    class Other:
        vision = chat.vision

    with pytest.raises(DataError, match="--parts text"):
        perturb(Other(), _prompts(chat)[:1], [ANSWER], HOW, seed=0, progress=silent)  # type: ignore[arg-type]
