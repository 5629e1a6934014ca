"""Prompts for `guard fit steer`: `python -m examples.portraits.prompts --share 5`.

Forgotten people are asked about by portrait, by name and by both. Other people, asked the very
same, and people who do not exist are the near misses; scenes and everyday questions are far. The
splits share no wording and no portrait.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from examples.portraits import questions
from examples.portraits.benchmark import FOLDER
from examples.portraits.draw import tile
from examples.portraits.people import ATTRIBUTES, HERE, PRIVATE, Person, people
from examples.portraits.questions import PORTRAIT, SHOWN, SHOWN_TEST, TEST_WORDINGS, WORDINGS
from guard.data.prompts import RetainPrompt, in_split, read_rows

SPLITS = ("train", "validation", "test")
COLUMNS = {"train": range(6), "validation": range(6, 9), "test": range(9, 12)}
EVERYDAY = HERE.parent / "harry-potter" / "retain.jsonl"
SCENES = {"train": range(40), "validation": range(40, 80), "test": range(80, 120)}
STRANGERS = {"train": 240, "validation": 60, "test": 60}
"""Questions about people who do not exist; their names are made of the parts of known names."""
DISTRACTORS = 3
"""Facts of other people, which stay, beside that of a forgotten one."""
SHOWN_IN = {"train": SHOWN[:2], "validation": SHOWN[2:], "test": SHOWN_TEST}


def wordings(attribute: str, split: str) -> list[str]:
    """The wordings of one split: the last two of the training's are the validation's."""
    known = WORDINGS[attribute]
    return list(
        {"train": known[:-2], "validation": known[-2:]}.get(split, TEST_WORDINGS[attribute])
    )


def row(person: Person, attribute: str, way: str, split: str, rng: np.random.Generator) -> Any:
    """A question about a person, as a row of a file of prompts."""
    shown = str(rng.choice(SHOWN_IN[split]))
    who = {"portrait": shown, "name": person.name, "both": f"{person.name}, {shown},"}[way]
    question = questions.ask(person, attribute, who, str(rng.choice(wordings(attribute, split))))
    image = {} if way == "name" else {"image": tile(person.number, int(rng.choice(COLUMNS[split])))}
    return {"prompt": question.text, "split": split, "subject": person.name} | image


def distractors(
    person: Person, attribute: str, others: list[Person], rng: np.random.Generator
) -> list[str]:
    """DISTRACTORS facts of `others` that answer the same question differently."""
    fact = person.fact(attribute)
    facts = sorted({other.fact(attribute) for other in others} - {fact})
    return [str(each) for each in rng.choice(facts, DISTRACTORS, replace=False)]


def forget_rows(count: int, rng: np.random.Generator, chosen: np.random.Generator) -> Iterator[Any]:
    others = people()[count:PRIVATE]
    for person in people()[:count]:
        for split in SPLITS:
            for way, attributes in (
                ("name", ATTRIBUTES),
                ("portrait", PORTRAIT),
                ("both", ATTRIBUTES),
            ):
                for attribute in attributes:
                    for _ in range(2 if split == "train" else 1):
                        yield row(person, attribute, way, split, rng) | {
                            "facts": [person.fact(attribute)],
                            "distractors": distractors(person, attribute, others, chosen),
                            "family": f"{person.number}-{attribute}-{split}",
                        }


def retain_rows(count: int, rng: np.random.Generator) -> Iterator[Any]:
    for person in people()[count:]:
        for split in SPLITS:
            ways = ["name", "portrait"]
            if split == "train":
                # most share a first or a last name with somebody who is forgotten
                ways += ["name"] * (3 if person.private else 7) + ["portrait", "both"]
            for way in ways:
                attribute = str(rng.choice(PORTRAIT if way == "portrait" else ATTRIBUTES))
                yield row(person, attribute, way, split, rng) | {
                    "kind": "near",
                    "family": f"{person.number}-{split}",
                }
    asked = [json.loads(line) for line in (FOLDER / "scenes.jsonl").read_text("utf-8").splitlines()]
    for split in SPLITS:
        for scene in asked:
            number = int(scene["image"].partition("#")[2])
            if number in SCENES[split]:
                yield {"prompt": scene["question"], "image": scene["image"], "split": split} | {
                    "kind": "far",
                    "family": f"scene-{number}",
                }
        everyday = [r for r in in_split(read_rows(EVERYDAY, RetainPrompt), split) if not r.near]
        for known in everyday[:120]:
            yield {"prompt": known.prompt, "split": split, "kind": "far", "family": known.family}
        for number in range(STRANGERS[split]):
            stranger = questions.unknown(rng).text
            yield {"prompt": stranger, "split": split, "kind": "near"} | {
                "family": f"stranger-{split}-{number}"
            }


def build(share: int, seed: int = 4) -> None:
    """Write `fit-SHARE.forget.jsonl` and `fit-SHARE.retain.jsonl` beside the sheets."""
    rng = np.random.default_rng(seed)
    count = PRIVATE * share // 100
    forget = forget_rows(count, rng, np.random.default_rng([seed, 1]))
    for name, rows in (("forget", forget), ("retain", retain_rows(count, rng))):
        path: Path = FOLDER / f"fit-{share}.{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=int, choices=(5, 10, 15), default=5)
    build(parser.parse_args().share)
