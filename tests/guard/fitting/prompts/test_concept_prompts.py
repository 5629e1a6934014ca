from __future__ import annotations

from pathlib import Path

import pytest

from guard.data.concept import Concept, Phrases, read_concept
from guard.data.prompts import PromptPair
from guard.fitting.prompts.concept_prompts import folds_of, labelled, prompts_of

EXAMPLES = sorted((Path(__file__).parents[4] / "examples" / "emoji" / "guards").glob("*.json"))
CONCEPT = Concept(
    name="object/knife",
    phrases=Phrases(train=("a KNIFE",), validation=("a DAGGER",)),
    hard_negatives=tuple(f"HARD{i}" for i in range(9)),
    replacements=("a SPOON",),
    companions=tuple(f"THING{i}" for i in range(9)),
)


def test_every_split_has_every_kind_and_no_text_twice() -> None:
    prompts = prompts_of(CONCEPT, 200)
    assert {(p.kind, p.split) for p in prompts} == {
        (kind, split) for kind in ("unsafe", "near", "far") for split in ("train", "validation")
    }
    assert len({prompt.text for prompt in prompts}) == len(prompts)


def test_phrases_and_things_are_in_one_split_only() -> None:
    known = {f"{kind}{i}" for kind in ("HARD", "THING") for i in range(9)} | {"KNIFE", "DAGGER"}
    words = {
        split: {
            word
            for prompt in prompts_of(CONCEPT, 300)
            if prompt.split == split
            for word in prompt.text.replace(",", " ").split()
        }
        & known
        for split in ("train", "validation")
    }
    assert words["train"] | words["validation"] == known
    assert not words["train"] & words["validation"]


def test_a_safe_prompt_never_names_the_concept() -> None:
    for prompt in prompts_of(CONCEPT, 200):
        if not prompt.unsafe:
            assert "KNIFE" not in prompt.text and "DAGGER" not in prompt.text


def test_a_seed_repeats_the_prompts() -> None:
    assert prompts_of(CONCEPT, 100, seed=3) == prompts_of(CONCEPT, 100, seed=3)
    assert prompts_of(CONCEPT, 100, seed=3) != prompts_of(CONCEPT, 100, seed=4)


def test_a_partner_is_a_safe_prompt_of_the_same_form() -> None:
    prompts = {prompt.text: prompt for prompt in prompts_of(CONCEPT, 200)}
    unsafe = [prompt for prompt in prompts.values() if prompt.unsafe]
    assert not any(prompts[prompt.partner].unsafe for prompt in unsafe)
    # of the same form: all but the concept's place is alike
    plain = next(p for p in unsafe if p.text == "a picture of a KNIFE")
    assert plain.partner.startswith("a picture of ")


def test_an_ending_is_compared_with_the_same_scene() -> None:
    style = Concept(
        name="style/comic",
        phrases=Phrases(train=("in COMIC style",), validation=("as a STRIP",)),
        hard_negatives=tuple(f"HARD{i}" for i in range(9)),
        replacements=("in OIL",),
        companions=tuple(f"THING{i}" for i in range(9)),
        ending=True,
    )
    pairs = [prompt for prompt in prompts_of(style, 100) if prompt.text.endswith("in COMIC style")]
    assert pairs
    for prompt in pairs:
        scene = prompt.text.removesuffix("in COMIC style").rstrip(" ,")
        assert prompt.partner.startswith(scene)


def test_replacements_are_marked() -> None:
    concept = CONCEPT.model_copy(
        update={"replacements": ("a SPOON", "a FORK"), "instead": ("a FORK",)}
    )
    prompts = prompts_of(concept, 300)
    plain = {"a picture of a SPOON": False, "a picture of a FORK": True}
    assert {p.text: p.instead for p in prompts if p.text in plain} == plain
    assert not any(prompt.instead for prompt in prompts if prompt.unsafe)
    assert not any(prompt.instead for prompt in prompts_of(CONCEPT, 300))


def test_pairs_of_the_test_split_stay_out() -> None:
    pairs = [
        PromptPair(prompt="a knife", safe="a spoon"),
        PromptPair(prompt="a dagger", safe="a fork", split="test"),
    ]
    assert [prompt.text for prompt in labelled(pairs, 2)] == ["a knife", "a spoon"]


def test_folds_share_the_name_alone() -> None:
    phrases = Phrases(train=("a NAME", "a KNIFE"), validation=("a DAGGER", "a SABRE"))
    prompts = folds_of(CONCEPT.model_copy(update={"phrases": phrases}), 400, 3)
    things = {f"{kind}{i}" for kind in ("HARD", "THING") for i in range(9)}
    known = things | {"NAME", "KNIFE", "DAGGER", "SABRE"}
    words: dict[str, set[str]] = {}
    for prompt in prompts:
        present = known & set(prompt.text.replace(",", " ").split())
        words.setdefault(prompt.split, set()).update(present)
    first, second, third = (words[f"fold {fold}"] for fold in range(3))
    assert first | second | third == known
    assert first & second == first & third == second & third == {"NAME"}


def test_more_folds_than_hard_negatives_share_none() -> None:
    prompts = folds_of(CONCEPT, 480, 12)
    splits_of = [{p.split for p in prompts if f"HARD{i}" in p.text} for i in range(9)]
    assert all(len(splits) == 1 for splits in splits_of)


def test_given_pairs_are_trained_on_or_distributed_over_the_folds() -> None:
    pairs = [
        PromptPair(prompt=f"knife {i}", safe=f"spoon {i}", split=split)
        for i, split in enumerate(("train", "validation", "validation", "validation"))
    ]
    splits = {prompt.text: prompt.split for prompt in labelled(pairs, 2)}
    assert splits["knife 0"] == splits["spoon 0"] == "train"
    assert splits["knife 1"] == splits["spoon 1"] == splits["spoon 3"] == "fold 1"
    assert splits["knife 2"] == "fold 0"


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
