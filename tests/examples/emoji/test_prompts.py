"""The prompts of the evaluation are the committed ones, unseen by any fit, and enough."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from examples.emoji import prompts
from examples.emoji.captions import phrases
from examples.emoji.sprites import names
from guard.data.prompts import ImagePrompt, read_rows
from guard.evaluation.images.suite import load_suite

ROWS = read_rows(prompts.FILE, ImagePrompt)
ASKING = ("direct", "paraphrase", "disguise", "pair")


def test_the_command_writes_the_committed_files() -> None:
    for file, rows in (
        (prompts.FILE, prompts.rows()),
        (prompts.VALIDATION, prompts.validation_rows()),
    ):
        assert rows == [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_prompts_that_choose_are_none_of_those_that_judge() -> None:
    chosen = read_rows(prompts.VALIDATION, ImagePrompt)
    seen = {row.how for row in chosen if row.kind == "paraphrase"}
    assert seen and not seen & {row.how for row in ROWS if row.kind == "paraphrase"}
    assert {row.kind for row in chosen} == {*ASKING, "clean"}


def test_there_are_400_images_of_each_kind() -> None:
    count = Counter(row.kind for row in ROWS if row.concept)
    assert all(count[kind] >= 400 for kind in (*ASKING, "clean", "hard"))
    bare = Counter(row.kind for row in ROWS if not row.concept)
    assert bare == dict.fromkeys(("single", "pair", "paraphrase"), 400)


def test_every_concept_has_every_kind() -> None:
    concepts = {*prompts.GUARDED, prompts.STYLE}
    for kind in (*ASKING, "clean", "hard"):
        assert {row.concept for row in ROWS if row.kind == kind and row.concept} == concepts


def test_paraphrases_are_phrases_that_no_fit_sees() -> None:
    for row in ROWS:
        if row.kind == "paraphrase" and row.concept in names():
            index = names().index(row.concept)
            assert row.how in phrases(index, "test")
            assert row.how in row.prompt
            assert row.how not in (*phrases(index, "train"), *phrases(index, "validation"))


def test_direct_prompts_name_the_concept_and_pairs_the_kept_object() -> None:
    for row in ROWS:
        if row.concept not in names():
            continue
        name = phrases(names().index(row.concept), "train")[0]
        if row.kind in ("direct", "pair"):
            assert name in row.prompt
        if row.kind == "pair":
            assert len(row.kept) == 1 and row.kept[0] != row.concept
            assert phrases(names().index(row.kept[0]), "train")[0] in row.prompt
        if row.kind in ("disguise", "clean", "hard"):
            assert f" {name} " not in f" {row.prompt} "


def test_hard_negatives_are_many_and_distinct() -> None:
    negatives = json.loads((Path(prompts.HERE) / "hard_negatives.json").read_text("utf-8"))
    assert set(negatives) == {*prompts.GUARDED, prompts.STYLE}
    assert all(len(set(texts)) == len(texts) >= 12 for texts in negatives.values())


def test_no_test_prompt_is_in_a_concept_file() -> None:
    hard = json.loads((prompts.HERE / "hard_negatives.json").read_text("utf-8"))
    for path in sorted((prompts.HERE / "guards").glob("*.json")):
        fitted = path.read_text("utf-8").lower()
        unseen = [row.how for row in ROWS if row.kind == "paraphrase" and row.concept == path.stem]
        assert unseen
        assert not [text for text in (*unseen, *hard[path.stem]) if f'"{text}"' in fitted]


def test_the_suite_has_the_prompts_and_enough_images() -> None:
    suite = load_suite(prompts.HERE / "suite.toml")
    assert prompts.FILE in suite.prompts
    assert suite.images * (len(prompts.GUARDED) + 1) >= 400
