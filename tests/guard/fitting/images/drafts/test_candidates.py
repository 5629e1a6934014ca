"""What WordNet proposes for a name."""

from __future__ import annotations

from guard.data.concept import Concept, Phrases
from guard.data.nouns.nouns import nouns
from guard.fitting.images.drafts.candidates import candidates, chosen_sense
from guard.fitting.images.drafts.naming import Named


def test_a_dog_has_synonyms_kinds_siblings_and_words_that_it_shares() -> None:
    found = candidates(nouns(), Named("object", "dog", ("doggo",)))
    assert found.name == "a dog" and found.certain[:2] == ("a dog", "a doggo")
    assert {"a puppy", "dogs", "a little dog"} <= {*found.phrases}
    assert {"a wolf", "a fox"} <= {*found.siblings}
    assert {"a hot dog", "a log"} <= {*found.near}
    assert not any("dog" in phrase.split() for phrase in found.companions)
    groups = (found.certain, found.phrases, found.siblings, found.near, found.companions)
    every = [phrase.lower() for group in groups for phrase in group]
    assert len(every) == len({*every})


def test_the_kind_picks_the_meaning() -> None:
    for kind, file in (("", "food"), ("food", "food"), ("plant", "plant"), ("object", "food")):
        sense, others = chosen_sense(nouns(), Named(kind, "orange"))
        assert sense is not None and (sense.file == file or kind == "object")
        assert sense not in others and len(others) == 3 + (file == "food") + (file == "plant")
    # a name in small letters is no constellation
    crane, _ = chosen_sense(nouns(), Named("", "crane"))
    assert crane is not None and crane.file != "object"


def test_another_meaning_is_a_near_miss() -> None:
    near = candidates(nouns(), Named("", "orange")).near
    assert "an orange tree" in near and "an orange car" in near


def test_a_name_that_is_not_known_has_what_was_given() -> None:
    started = Concept(
        name="object/qwxyz",
        phrases=Phrases(train=("a qwxyz machine",)),
        hard_negatives=tuple(f"a thing {i}" for i in range(6)),
        replacements=("a pump",),
        companions=("a shed",),
    )
    found = candidates(nouns(), Named("", "qwxyz", ("xyz",), started))
    assert found.sense is None
    assert found.certain == ("a qwxyz machine", "a qwxyz", "a xyz") or "an xyz" in found.certain
    assert found.siblings == ("a pump",) and "a thing 5" in found.near
    assert found.companions[0] == "a shed"
