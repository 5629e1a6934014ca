from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from guard.data.concept import Concept, Phrases
from guard.errors import DataError
from guard.fitting.prompts import search as module
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.search import Classifier, Search, with_searched_prompts
from guard.models.images import ImageModel
from guard.reporting.progress import Stages
from steering.images.conditioning import Conditioning
from tests.guard.fitting.images.test_cgce import QUIET
from tests.server.tiny_pipeline import NAN_WORD, WORDS, save_pipeline

CONCEPT = Concept(
    name="object/knife",
    phrases=Phrases(train=("knife",)),
    hard_negatives=tuple(f"hard {i}" for i in range(6)),
    replacements=("cat",),
)
PROMPTS = [
    LabelledPrompt("knife", "unsafe", "fold 0", "cat"),
    LabelledPrompt("a knife", "unsafe", "fold 1", "a cat"),
    LabelledPrompt("cat", "far", "fold 0"),
    LabelledPrompt("a cat", "far", "fold 1"),
    LabelledPrompt("knife dog", "near", "fold 0"),
    LabelledPrompt("dog dog", "near", "fold 1"),
]


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> ImageModel:
    family = save_pipeline(tmp_path_factory.mktemp("model"))
    return ImageModel(family, name="tiny", architecture="StableDiffusionPipeline")


training_sets: list[list[str]] = []


def knows_nothing(known: Sequence[LabelledPrompt]) -> Callable[[Conditioning], Tensor]:
    training_sets.append([prompt.text for prompt in known])
    return lambda text: torch.zeros(text.rows)


def likes_it_short(_known: Sequence[LabelledPrompt]) -> Callable[[Conditioning], Tensor]:
    """Least sure of prompts of few words."""
    return lambda text: text.masks["text"].sum(1).float()


def search(
    image_model: ImageModel, classifier: Classifier = knows_nothing, **changed: Any
) -> list[LabelledPrompt]:
    training_sets.clear()
    return with_searched_prompts(
        image_model,
        CONCEPT,
        PROMPTS,
        Search(**({"rounds": 2, "count": 20} | changed)),
        classifier,
        splits=["fold 0", "fold 1"],
        seed=0,
        progress=QUIET,
    )


@pytest.fixture()
def judged_by_the_word(image_model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the denoiser: what says "knife" is alike, what says "blade" is between."""
    texts: dict[bytes, str] = {}

    def encode(prompts: Sequence[str], _stages: Stages | None = None) -> Conditioning:
        conditioning = image_model.family.encode(prompts)
        rows = conditioning.states["text"].detach()
        texts.update({row.numpy().tobytes(): p for row, p in zip(rows, prompts, strict=True)})
        return conditioning

    def alike(text: Conditioning, _advance: Any = None) -> Tensor:
        row_texts = [texts[row.numpy().tobytes()] for row in text.states["text"].detach()]
        return torch.tensor(
            [1.0 if "knife" in t else 0.5 if "blade" in t else 0.0 for t in row_texts]
        )

    known = [(i, word) for i, word in enumerate(WORDS) if word.isalpha() and word != NAN_WORD]
    monkeypatch.setattr(module, "words", lambda _tokenizer: known)
    monkeypatch.setattr(image_model, "encode", encode)
    monkeypatch.setattr(module, "likeness_of", lambda *_, **__: alike)


@pytest.mark.usefixtures("judged_by_the_word")
def test_prompts_that_show_the_concept_are_unsafe_and_uncertain_ones_are_left_out(
    image_model: ImageModel,
) -> None:
    searched = search(image_model)[len(PROMPTS) :]
    assert {prompt.kind for prompt in searched} == {"drawn", "undrawn"}
    for prompt in searched:
        assert prompt.unsafe == ("knife" in prompt.text)
        assert prompt.unsafe or "blade" not in prompt.text
        assert module.SHORTEST <= len(prompt.text.split()) <= module.LONGEST
    assert {prompt.split for prompt in searched} == {"fold 0", "fold 1"}
    assert len({prompt.text for prompt in searched}) == len(searched)


@pytest.mark.usefixtures("judged_by_the_word")
def test_hard_negatives_that_show_the_concept_are_mistaken(image_model: ImageModel) -> None:
    given = search(image_model)[: len(PROMPTS)]
    assert [prompt.kind for prompt in given[4:]] == ["mistaken", "near"]
    assert given[:4] == PROMPTS[:4]


@pytest.mark.usefixtures("judged_by_the_word")
def test_later_rounds_use_a_classifier_trained_on_the_earlier_ones(
    image_model: ImageModel,
) -> None:
    searched = search(image_model, rounds=3)
    assert len(training_sets) == 2
    assert len(PROMPTS) < len(training_sets[0]) < len(training_sets[1]) < len(searched)
    assert training_sets[0] == [prompt.text for prompt in searched[: len(training_sets[0])]]


@pytest.mark.usefixtures("judged_by_the_word")
def test_it_labels_what_the_classifier_is_least_sure_of(image_model: ImageModel) -> None:
    def lengths(classifier: Classifier) -> list[int]:
        searched = search(image_model, classifier, count=40)
        first = len(search(image_model, classifier, rounds=1, count=40))
        return [len(prompt.text.split()) for prompt in searched[first:]]

    short, any_length = lengths(likes_it_short), lengths(knows_nothing)
    assert max(short) < max(any_length)
    assert sum(short) / len(short) < sum(any_length) / len(any_length) - 1


def test_without_rounds_nothing_changes(image_model: ImageModel) -> None:
    assert search(image_model, rounds=0) == PROMPTS
    assert search(image_model, count=0) == PROMPTS


@pytest.mark.usefixtures("judged_by_the_word")
def test_a_likeness_that_is_not_finite_is_no_label(
    image_model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(text: Conditioning, _advance: Any = None) -> Tensor:
        return torch.full((text.rows,), torch.nan)

    monkeypatch.setattr(module, "likeness_of", lambda *_, **__: nothing)
    assert search(image_model) == PROMPTS


def test_a_tokenizer_without_words_is_an_error(
    image_model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "words", lambda _tokenizer: [])
    with pytest.raises(DataError, match="--rounds 0"):
        search(image_model)


def test_the_denoiser_itself_labels_them_the_same_each_time(image_model: ImageModel) -> None:
    first = search(image_model)
    assert first == search(image_model)
    assert len(first) >= len(PROMPTS)


def test_a_sample_of_the_vocabulary_is_searched(
    image_model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def nearest(
        _model: object, _concept: object, vocabulary: Sequence[str], _stages: object
    ) -> list[str]:
        seen.extend(vocabulary)
        return list(vocabulary)

    monkeypatch.setattr(module, "nearest_words", nearest)
    search(image_model, rounds=1, count=4, vocabulary=2)
    assert len(seen) == 2 and {*seen} <= {*WORDS}
