from __future__ import annotations

import random
from pathlib import Path

import pytest

from guard.concept import Concept, Phrases, read_concept
from guard.fitting.concept_prompts import disguised, labelled, prompts_of
from guard.prompts import PromptPair

EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "emoji" / "guards").glob("*.json"))
CONCEPT = Concept(
    name="object/knife",
    phrases=Phrases(train=("a KNIFE",), validation=("a DAGGER",)),
    hard_negatives=tuple(f"HARD{i}" for i in range(9)),
    replacements=("a SPOON",),
    companions=tuple(f"THING{i}" for i in range(9)),
)


def test_every_split_has_every_kind_and_no_text_twice() -> None:
    made = prompts_of(CONCEPT, 200)
    assert {(p.kind, p.split) for p in made} == {
        (kind, split) for kind in ("unsafe", "near", "far") for split in ("train", "validation")
    }
    assert len({prompt.text for prompt in made}) == len(made)


def test_phrases_and_things_are_in_one_split_only() -> None:
    words: dict[str, set[str]] = {"train": set(), "validation": set()}
    for prompt in prompts_of(CONCEPT, 300):
        words[prompt.split] |= {
            word
            for word in prompt.text.replace(",", " ").split()
            if word.startswith(("HARD", "THING")) or word in {"KNIFE", "DAGGER"}
        }
    assert words["train"] and words["validation"]
    assert not words["train"] & words["validation"]


def test_a_safe_prompt_never_names_the_concept() -> None:
    for prompt in prompts_of(CONCEPT, 200):
        if not prompt.unsafe:
            assert "KNIFE" not in prompt.text and "DAGGER" not in prompt.text


def test_a_seed_repeats_the_prompts() -> None:
    assert prompts_of(CONCEPT, 100, seed=3) == prompts_of(CONCEPT, 100, seed=3)
    assert prompts_of(CONCEPT, 100, seed=3) != prompts_of(CONCEPT, 100, seed=4)


def test_disguises_change_the_word_and_short_ones_stay() -> None:
    rng = random.Random(0)
    assert all(disguised("a pistol", rng) != "a pistol" for _ in range(50))
    assert disguised("a car", rng) == "a car"


def test_pairs_of_the_test_split_stay_out() -> None:
    pairs = [
        PromptPair(prompt="a knife", safe="a spoon"),
        PromptPair(prompt="a dagger", safe="a fork", split="test"),
    ]
    assert [prompt.text for prompt in labelled(pairs)] == ["a knife", "a spoon"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_shipped_concepts_hold_and_know_no_test_phrase(path: Path) -> None:
    from examples.emoji.sprites import concepts

    held_out = {str(phrase) for concept in concepts() for phrase in concept["test"]}  # type: ignore[attr-defined]
    concept = read_concept(path)
    texts = {*concept.phrases.train, *concept.phrases.validation, *concept.companions}
    texts |= {*concept.hard_negatives, *concept.replacements}
    assert not texts & held_out


def test_there_are_shipped_concepts() -> None:
    assert len(EXAMPLES) >= 9
