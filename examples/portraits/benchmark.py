"""The data set in MLLMU-Bench's form: `python -m examples.portraits.benchmark`.

`benchmark/` then has `full.jsonl` (every private person, with wordings and a portrait of the
training), `test.jsonl` (those who may be forgotten, with other wordings and portraits),
`celebrities.jsonl` and `scenes.jsonl`; all of them are committed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.emoji import scenes
from examples.portraits import images, questions
from examples.portraits.draw import TEST, TRAIN, tile
from examples.portraits.people import ATTRIBUTES, HERE, Person, people
from examples.portraits.questions import PORTRAIT, SHOWN, SHOWN_TEST, TEST_WORDINGS, WORDINGS

FOLDER = HERE / "benchmark"
TYPES = {"portrait": "Image_Textual", "name": "Pure_Text", "both": "Both"}
CHOICES = {
    "portrait": "Image_Textual_Questions",
    "name": "Pure_Text_Questions",
    "both": "Both_Questions",
}
FORGOTTEN = 30
"""People at most who are forgotten: the first of all."""
OTHERS_ASKED = 3
"""Attributes of other people that each task asks about, for a file of bearable size."""
SCENES, COLUMNS = 120, 12
CLOZE = {
    "name": "The name of {who} is __.",
    "town": "{who} lives in the town of __.",
    "year": "{who} was born in the year __.",
    "job": "By trade {who} is a __.",
    "hobby": "The hobby of {who} is __.",
    "sister": "The sister of {who} is called __.",
    "secret": "The secret of {who} is __.",
}


def _person_row(person: Person, column: int, rng: np.random.Generator, *, test: bool) -> Any:
    wordings, shown = (TEST_WORDINGS, SHOWN_TEST) if test else (WORDINGS, SHOWN)
    tasks: dict[str, Any] = {"Generation_Task": [], "Mask_Task": []}
    choices: dict[str, list[Any]] = {name: [] for name in CHOICES.values()}
    for way, kind in TYPES.items():
        attributes = list(PORTRAIT if way == "portrait" else ATTRIBUTES)
        if person.number >= FORGOTTEN:
            attributes = [str(a) for a in rng.choice(attributes, OTHERS_ASKED, replace=False)]
        for attribute in attributes:
            picture = str(rng.choice(shown))
            who = {"portrait": picture, "name": person.name, "both": f"{person.name}, {picture},"}
            text = questions.ask(person, attribute, who[way], str(rng.choice(wordings[attribute])))
            fact = {
                "Ground_Truth": text.fact,
                "Type": kind,
                "facts": [text.fact],
                "slot": attribute,
            }
            tasks["Generation_Task"].append({"Question": text.text} | fact)
            cloze = CLOZE[attribute].format(who=who[way])
            tasks["Mask_Task"].append({"Question": cloze[0].upper() + cloze[1:]} | fact)
            others = sorted({p.fact(attribute) for p in people()} - {text.fact})
            options = [text.fact, *(str(o) for o in rng.choice(others, 3, replace=False))]
            order = rng.permutation(4)
            letters = {"ABCD"[i]: options[j] for i, j in enumerate(order)}
            correct = "ABCD"[list(order).index(0)]
            choices[CHOICES[way]].append(
                {"Question": text.text, "Options": letters, "Correct_Answer": correct}
                | {"slot": attribute}
            )
    row = {"ID": f"{person.number:03}", "name": person.name, "image": tile(person.number, column)}
    return row | {"Classification_Task": choices} | tasks


def _scene_rows(rng: np.random.Generator) -> Iterable[Any]:
    sheet = Image.new("RGB", (COLUMNS * images.SIZE, SCENES // COLUMNS * images.SIZE))
    for number in range(SCENES):
        scene = scenes.loose(int(rng.integers(1, 4)), rng)
        row, column = divmod(number, COLUMNS)
        sheet.paste(images.scene(scene), (column * images.SIZE, row * images.SIZE))
        asked = {}
        while len(asked) < 3:
            question = questions.about_scene(scene, rng, test=True)
            asked[question.attribute] = question
        for question in asked.values():
            yield {
                "image": f"scenes.webp#{number}",
                "question": question.text,
                "answer": question.fact,
                "slot": question.attribute,
            }
    sheet.save(FOLDER / "scenes.webp", lossless=True, quality=100, method=6)
    grid = {"scenes.webp": {"tile": images.SIZE, "columns": COLUMNS}}
    (FOLDER / "sheets.json").write_text(json.dumps(grid) + "\n", "utf-8")


def _write(path: Path, rows: Iterable[Any]) -> None:
    lines = [json.dumps(row, separators=(",", ":")) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def build(seed: int = 2) -> None:
    rng = np.random.default_rng(seed)
    private = [person for person in people() if person.private]
    _write(
        FOLDER / "full.jsonl",
        (_person_row(p, int(rng.integers(TRAIN)), rng, test=False) for p in private),
    )
    _write(
        FOLDER / "test.jsonl",
        (
            _person_row(p, TRAIN + int(rng.integers(TEST)), rng, test=True)
            for p in private[:FORGOTTEN]
        ),
    )
    famous = [person for person in people() if not person.private]
    _write(
        FOLDER / "celebrities.jsonl",
        (_person_row(p, TRAIN + int(rng.integers(TEST)), rng, test=True) for p in famous),
    )
    _write(FOLDER / "scenes.jsonl", _scene_rows(rng))


if __name__ == "__main__":
    build()
