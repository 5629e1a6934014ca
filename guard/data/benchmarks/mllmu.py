"""MLLMU-Bench (Liu et al., arXiv 2410.22108) as released, and data sets of the same form.

Sets: `Full_Set` (all private people), `Test_Set` (the same in altered images), `Retain_Set`
(well-known people), `forget_5`, `forget_10`, `forget_15` (whom to forget). Ours: `full`, `test`,
`celebrities`, where the first of them are forgotten, and `scenes`, questions about images without
people.

A row: `ID`, `image` (or `images`, of which the first is asked about), `Classification_Task` with
`Image_Textual_Questions` and `Pure_Text_Questions` (`Question`, `Options`, `Correct_Answer`),
`Generation_Task` and `Mask_Task` (`Question`, `Ground_Truth`, `Type`), ours also `name`, `facts`
and the type `Both`. Nested fields may be JSON text. The released evaluation shows examples of one
or two people out of those that it then asks about; here questions have no examples.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from guard.data.benchmarks.portraits import Portrait, portrait_of
from guard.data.benchmarks.questions import (
    Benchmark,
    By,
    Part,
    Question,
    Task,
    correct_letter,
    lettered,
)
from guard.data.benchmarks.rows import Row, find_parts, read_parts
from guard.errors import DataError

SHARES = (5, 10, 15)

_FULL = ("full", "Full_Set")
_TEST = ("test", "Test_Set")
_CELEBRITIES = ("celebrities", "Retain_Set")
_CHOICES: Mapping[str, By] = {
    "Image_Textual_Questions": "portrait",
    "Pure_Text_Questions": "name",
    "Both_Questions": "both",
}
_TYPES: Mapping[str, By] = {"image_textual": "portrait", "pure_text": "name", "both": "both"}
_TASKS: Mapping[str, Task] = {"Generation_Task": "generation", "Mask_Task": "cloze"}


def is_mllmu(folder: Path) -> bool:
    """Whether the folder holds a data set of this form."""
    return bool(find_parts(folder, *_FULL))


def load_mllmu(folder: Path, share: int) -> Benchmark:
    """The benchmark at a share of SHARES. Raises DataError naming the file and the row."""
    if share not in SHARES:
        raise DataError(f"{folder}: has no forget set of {share} %: choose of {_listed(SHARES)}")
    full = _people(folder, _FULL)
    forgotten = _forgotten(folder, full, share)
    skipped: Counter[str] = Counter()
    questions: list[Question] = []

    def ask(part: Part, people: Mapping[str, Row]) -> None:
        for person, row in people.items():
            questions.extend(_questions(part, person, row, folder, skipped))

    ask("forget", {person: full[person] for person in forgotten})
    if find_parts(folder, *_TEST):
        test = _people(folder, _TEST)
        ask("test", {person: test[person] for person in forgotten if person in test})
    ask("retain", {person: row for person, row in full.items() if person not in forgotten})
    if find_parts(folder, *_CELEBRITIES):
        ask("celebrities", _people(folder, _CELEBRITIES))
    if scenes := find_parts(folder, "scenes"):
        questions += _scenes(read_parts(scenes), folder)
    names = [str(full[person]["name"]) for person in forgotten if full[person].get("name")]
    return Benchmark(
        folder.resolve().name, share, tuple(questions), forgotten, tuple(names), skipped
    )


def _people(folder: Path, names: Sequence[str]) -> dict[str, Row]:
    people: dict[str, Row] = {}
    parts = find_parts(folder, *names)
    for number, row in enumerate(read_parts(parts), 1):
        if not row.get("ID"):
            raise DataError(f"{parts[0]}: row {number} has no ID")
        if (person := str(row["ID"])) in people:
            raise DataError(f"{parts[0]}: row {number}: the ID {person!r} is there twice")
        people[person] = row
    return people


def _forgotten(folder: Path, full: Mapping[str, Row], share: int) -> tuple[str, ...]:
    if parts := find_parts(folder, f"forget_{share}"):
        people = tuple(dict.fromkeys(str(row.get("ID")) for row in read_parts(parts)))
        if strangers := [person for person in people if person not in full]:
            raise DataError(f"{parts[0]}: the ID {strangers[0]!r} is not in the full set")
        return people
    count = round(len(full) * share / 100)
    if not count:
        raise DataError(
            f"{folder}: {share} % of {len(full)} people are none: choose a larger share"
        )
    return tuple(full)[:count]


def _questions(
    part: Part, person: str, row: Row, folder: Path, skipped: Counter[str]
) -> Iterator[Question]:
    where = f"{folder}: {part} person {person}"
    images = row.get("images")
    image = portrait_of(images[0] if images else row.get("image"), folder, where)
    for key, by in _CHOICES.items():
        for slot, item in enumerate(_list(_unpacked(row.get("Classification_Task")), key)):
            yield from _choice(part, person, by, item, image, f"{key}/{slot}", skipped)
    for key, task in _TASKS.items():
        for slot, item in enumerate(_list(row, key)):
            way = _TYPES.get(str(item.get("Type")).strip().lower())
            text, truth = item.get("Question"), item.get("Ground_Truth")
            if way is None or not text or not truth:
                skipped["no type, question or truth"] += 1
            elif task == "cloze" and "__" not in str(text):
                skipped["a cloze without a blank"] += 1
            elif way != "name" and image is None:
                skipped["a question about an image without one"] += 1
            else:
                yield Question(
                    part,
                    person,
                    task,
                    way,
                    str(text).strip(),
                    str(truth).strip(),
                    image if way != "name" else None,
                    facts=_facts(item),
                    slot=str(item.get("slot") or f"{key}/{slot}"),
                )


def _choice(
    part: Part,
    person: str,
    by: By,
    item: Row,
    image: Portrait | None,
    slot: str,
    skipped: Counter[str],
) -> Iterator[Question]:
    options = lettered(_unpacked(item.get("Options")))
    letter = correct_letter(item.get("Correct_Answer"), options)
    if not item.get("Question") or len(options) < 2:
        skipped["no question, or fewer than two options"] += 1
    elif letter is None:
        skipped["a correct answer that is no option"] += 1
    elif by != "name" and image is None:
        skipped["a question about an image without one"] += 1
    else:
        yield Question(
            part,
            person,
            "classification",
            by,
            str(item["Question"]).strip(),
            letter,
            image if by != "name" else None,
            options,
            slot=str(item.get("slot") or slot),
        )


def _scenes(rows: Sequence[Row], folder: Path) -> Iterator[Question]:
    for number, row in enumerate(rows, 1):
        where = f"{folder}: scene {number}"
        image = portrait_of(row.get("image"), folder, where)
        if image is None or not row.get("question") or not row.get("answer"):
            raise DataError(f"{where}: needs image, question and answer")
        yield Question(
            part="scenes",
            person=f"scene {number}",
            task="generation",
            by="portrait",
            text=str(row["question"]),
            truth=str(row["answer"]),
            portrait=image,
            facts=_facts(row),
            slot=str(row.get("slot") or row["question"]),
        )


def _facts(item: Row) -> tuple[str, ...]:
    facts = item.get("facts") or ()
    return tuple(str(fact) for fact in ((facts,) if isinstance(facts, str) else facts))


def _list(value: Any, key: str) -> list[Row]:
    """The list of objects below `key`; none where it is absent or of another form."""
    found = _unpacked(value.get(key)) if isinstance(value, Mapping) else None
    return [item for item in found or () if isinstance(item, Mapping)]


def _unpacked(value: Any) -> Any:
    """A nested field, which some copies hold as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
