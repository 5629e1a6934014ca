"""The retain bank: enough prompts, each once, split by topic, the same on every machine."""

from __future__ import annotations

from collections import Counter

from guard.data.bank.bank import PROMPTS, digest, reference, templates, topics


def test_the_bank_is_large_and_says_nothing_twice() -> None:
    every = topics()
    prompts = [prompt for topic in every for prompt in topic.prompts]
    assert len(every) >= 300 and len(prompts) >= 3000
    assert len({topic.name.casefold() for topic in every}) == len(every)
    assert len(set(prompts)) == len(prompts)
    assert {len(topic.prompts) for topic in every} == {PROMPTS}
    assert not any("{t}" in prompt for prompt in prompts)
    assert all(topic.name in prompt for topic in every for prompt in topic.prompts)


def test_a_topic_lies_in_one_split_and_every_area_in_all() -> None:
    by_area = Counter((topic.area, topic.split) for topic in topics())
    areas = {topic.area for topic in topics()}
    assert len(areas) >= 30
    for area in areas:
        assert by_area[area, "train"] > by_area[area, "validation"] >= 2
        assert by_area[area, "test"] >= 1
    assert {row.split for topic in topics()[:1] for row in topic.rows} == {topics()[0].split}


def test_prompts_are_also_in_other_languages() -> None:
    prompts = [prompt for topic in topics() for prompt in topic.prompts]
    for words in ("Was weißt du", "Explique-moi", "¿Qué", "请", "Mi spieghi"):
        assert sum(words in prompt for prompt in prompts) > 30


def test_wordings_of_the_evaluation_are_in_no_prompt() -> None:
    wordings = templates()
    known = {wording for kind, each in wordings.items() if kind != "evaluation" for wording in each}
    assert not known & {*wordings["evaluation"]}
    assert all("{t}" in wording for each in wordings.values() for wording in each)


def test_reference_concepts_are_topics_of_the_train_split() -> None:
    train = {topic.name for topic in topics() if topic.split == "train"}
    assert {row.subject for row in reference()} <= train
    assert not any(row.leaks(row.prompt) for row in reference())


def test_the_digest_is_of_the_prompts() -> None:
    assert digest() == digest() and len(digest()) == 64
