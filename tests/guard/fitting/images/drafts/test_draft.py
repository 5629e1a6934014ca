"""What is proposed for a name, and what the model makes of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from guard.data.concept import Concept, Phrases
from guard.errors import DataError
from guard.fitting.images.drafts import draft as module
from guard.fitting.images.drafts.draft import ENOUGH, Draft, draft
from guard.fitting.images.drafts.naming import Named
from guard.models.images import ImageModel
from tests.guard.fitting.images.test_cgce import QUIET
from tests.server.tiny_pipeline import save_pipeline

DOGS = ("dog", "puppy", "hound", "terrier", "wolf", "poodle", "spaniel", "corgi", "collie")


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> ImageModel:
    family = save_pipeline(tmp_path_factory.mktemp("model"))
    return ImageModel(family, name="tiny", architecture="StableDiffusionPipeline")


@pytest.fixture
def drafted(
    image_model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Named, Callable[[str], float]], Draft]:
    """The draft by a denoiser that finds each phrase so alike."""

    def make(named: Named, alike: Callable[[str], float]) -> Draft:
        def likeness(texts: list[str], _advance: object) -> Tensor:
            return torch.tensor([alike(text) for text in texts])

        monkeypatch.setattr(image_model, "encode", lambda texts, *_: list(texts))
        monkeypatch.setattr(module, "likeness_of", lambda *_, **__: likeness)
        monkeypatch.setattr(
            module, "nearest_words", lambda _model, _concept, vocabulary, _stages: vocabulary
        )
        return draft(image_model, named, QUIET)

    return make


def a_dog(text: str) -> float:
    return float(any(word in text.lower() for word in DOGS))


def test_phrases_ask_for_it_where_the_model_takes_them_for_its_name(
    drafted: Callable[[Named, Callable[[str], float]], Draft],
) -> None:
    made = drafted(Named("object", "dog", ("doggo",)), a_dog)
    concept = made.concept
    assert concept.name == "object/dog" and concept.phrases.train[:2] == ("a dog", "a doggo")
    asking = {*concept.phrases.train, *concept.phrases.validation}
    learned = asking - {"a dog", "a doggo", "a domestic dog"}
    assert learned and all(a_dog(phrase) for phrase in learned)
    assert "a wolf" in made.confused and "a fox" in {*concept.replacements, *concept.hard_negatives}
    for group in (concept.hard_negatives, concept.replacements, concept.companions):
        assert group and not any(a_dog(phrase) for phrase in group)


def test_prompts_of_the_evaluation_are_of_phrases_that_no_fit_has(
    drafted: Callable[[Named, Callable[[str], float]], Draft],
) -> None:
    made = drafted(Named("", "dog"), a_dog)
    concept, kinds = made.concept, {row.kind for row in made.prompts}
    assert kinds == {"direct", "paraphrase", "hard", "clean", "mistaken"}
    known = {
        "paraphrase": (*concept.phrases.train, *concept.phrases.validation),
        "hard": (*concept.hard_negatives, *concept.replacements),
        "clean": concept.companions,
    }
    prompts = [row.prompt for row in made.prompts]
    assert len(prompts) == len({*prompts})
    for row in made.prompts:
        assert not any(row.prompt == phrase for phrase in known.get(row.kind, ()))
    alone = [row.prompt for row in made.prompts if row.kind == "hard"][:1]
    assert alone and alone[0] not in known["hard"]


def test_what_a_user_has_written_is_kept_whatever_the_model_makes_of_it(
    drafted: Callable[[Named, Callable[[str], float]], Draft],
) -> None:
    negatives = tuple(f"a dog of kind {i}" for i in range(20))
    started = Concept(
        name="pet/dog",
        description="mine",
        phrases=Phrases(train=("my dog",)),
        hard_negatives=negatives,
        replacements=("a dog bowl",),
        endings=("in noto style",),
    )
    made = drafted(Named("", "dog", started=started), a_dog)
    concept = made.concept
    assert (concept.name, concept.description) == ("pet/dog", "mine")
    assert concept.phrases.train[0] == "my dog" and concept.endings == started.endings
    tested = " ".join(row.prompt for row in made.prompts)
    assert "a dog bowl" in concept.replacements
    assert all(text in concept.hard_negatives or text in tested for text in negatives)


def test_with_few_sure_neighbours_the_least_alike_are_taken(
    drafted: Callable[[Named, Callable[[str], float]], Draft],
) -> None:
    made = drafted(Named("", "dog"), lambda text: 0.5 - len(text) / 1_000)
    concept = made.concept
    rest = {*concept.hard_negatives, *concept.replacements}
    assert 12 <= len(rest) <= ENOUGH


def test_a_model_that_tells_few_neighbours_apart_is_noted(
    drafted: Callable[[Named, Callable[[str], float]], Draft],
) -> None:
    made = drafted(Named("", "dog"), lambda text: float(len(text) % 4 > 0))
    assert any("neighbours as well, as for" in note for note in made.notes)
    assert not any("neighbours as well" in note for note in drafted(Named("", "dog"), a_dog).notes)
    mistaken = [row.prompt for row in made.prompts if row.kind == "mistaken"]
    assert len(mistaken) == 8 and all(any(c in text for c in made.confused) for text in mistaken)


def test_where_the_model_draws_it_for_everything_there_is_no_draft(
    drafted: Callable[[Named, Callable[[str], float]], Draft],
) -> None:
    with pytest.raises(DataError, match="tiny draws 'dog' for nearly all that resembles it"):
        drafted(Named("", "dog"), lambda _text: 1.0)


def test_a_user_is_told_the_meaning_that_was_taken(
    drafted: Callable[[Named, Callable[[str], float]], Draft],
) -> None:
    (note, *_) = drafted(Named("", "dog"), a_dog).notes
    assert "taken for animal: a member of the genus Canis" in note and "/dog names the" in note


def test_a_name_without_a_token_is_refused(image_model: ImageModel) -> None:
    with pytest.raises(DataError, match="text encoder of tiny has no token of 'qwxyz'"):
        draft(image_model, Named("", "qwxyz"), QUIET)


def test_a_name_that_wordnet_does_not_know_has_the_words_of_the_vocabulary(
    drafted: Callable[[Named, Callable[[str], float]], Draft],
) -> None:
    started = Concept(
        name="object/cat-knife",
        phrases=Phrases(train=("a cat knife",)),
        hard_negatives=tuple(f"a thing {i}" for i in range(20)),
        replacements=("a cup",),
    )
    made = drafted(Named("object", "cat knife", started=started), lambda _text: 0.0)
    assert any("WordNet has no thing called 'cat knife'" in note for note in made.notes)
    assert any("only the name itself is tried" in note for note in made.notes)
    rest = {*made.concept.hard_negatives, *(row.prompt for row in made.prompts)}
    assert any("blade" in phrase for phrase in rest)
