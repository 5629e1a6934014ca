"""CLEAR (Dontsov et al., arXiv 2410.18057) as released: portraits of TOFU's fictitious authors.

Sets: `full`, `forgetNN`, `retainNN` (`image`, `caption`, `name`) with `+tofu` behind the name for
questions without an image as well (`question`, `answer`), `forgetNN_perturbed` and
`retain_perturbed` (`perturbed_names`, other names to choose from), `real_faces` and `real_world`
(`question`, `answer`, `options`).

The task "naming" is a classification here, "caption" and "QA" are generations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from guard.data.benchmarks.portraits import Portrait, portrait_of
from guard.data.benchmarks.questions import (
    LETTERS,
    Benchmark,
    By,
    Part,
    Question,
    correct_letter,
    lettered,
)
from guard.data.benchmarks.rows import Row, find_parts, read_parts
from guard.errors import DataError

SHARES = (1, 5, 10)

NAMING = "What is the name of the person in the image?"
CAPTION = "Describe the image in detail."
"""One of the questions that the released evaluation chooses from."""


def is_clear(folder: Path) -> bool:
    """Whether the folder holds this data set."""
    return any(find_parts(folder, f"forget{share:02d}") for share in SHARES)


def load_clear(folder: Path, share: int) -> Benchmark:
    """The benchmark at a share of SHARES. Raises DataError naming the file and the row."""
    if share not in SHARES or not find_parts(folder, f"forget{share:02d}"):
        raise DataError(f"{folder}: has no set forget{share:02d}")
    skipped: Counter[str] = Counter()
    questions: list[Question] = []
    names: dict[str, None] = {}
    people: dict[Part, str] = {"forget": f"forget{share:02d}", "retain": f"retain{100 - share}"}
    for part, name in people.items():
        for number, row in enumerate(_rows(folder, f"{name}+tofu", name)):
            questions += _person(part, f"{name} {number}", row, folder, skipped)
            if part == "forget" and row.get("name"):
                names[str(row["name"])] = None
    naming: dict[Part, str] = {
        "forget": f"forget{share:02d}_perturbed",
        "retain": "retain_perturbed",
    }
    for part, name in naming.items():
        for number, row in enumerate(_rows(folder, name)):
            questions += _naming(part, f"{name} {number}", number, row, folder, skipped)
    other: dict[Part, str] = {"celebrities": "real_faces", "scenes": "real_world"}
    for part, name in other.items():
        for number, row in enumerate(_rows(folder, name)):
            questions += _choice(part, f"{name} {number}", row, folder, skipped)
    forgotten = tuple(names)
    return Benchmark(folder.resolve().name, share, tuple(questions), forgotten, forgotten, skipped)


def _rows(folder: Path, *names: str) -> Sequence[Row]:
    return read_parts(find_parts(folder, *names))


def _person(
    part: Part, where: str, row: Row, folder: Path, skipped: Counter[str]
) -> Iterator[Question]:
    image, name = _image(row, folder, where), str(row.get("name") or "")
    if row.get("question") and row.get("answer") and image is None:
        texts = (str(row["question"]), str(row["answer"]))
        yield Question(part, name or where, "generation", "name", *texts)
    elif image is not None and row.get("caption"):
        captions = row["caption"]
        caption = str(captions if isinstance(captions, str) else captions[0])
        facts = (name,) if name else ()
        yield Question(part, name, "generation", "portrait", CAPTION, caption, image, facts=facts)
    else:
        skipped["neither a question nor an image with a caption"] += 1


def _naming(
    part: Part, where: str, number: int, row: Row, folder: Path, skipped: Counter[str]
) -> Iterator[Question]:
    image, name = _image(row, folder, where), str(row.get("name") or "")
    others = [str(other) for other in row.get("perturbed_names") or () if str(other) != name]
    if image is None or not name or not others:
        skipped["no image, name or other names"] += 1
        return
    chosen = others[: len(LETTERS) - 1]
    # the place of the truth must not give it away
    at = number % (len(chosen) + 1)
    options = lettered([*chosen[:at], name, *chosen[at:]])
    yield Question(
        part, name, "classification", "portrait", NAMING, LETTERS[at], image, options, slot="name"
    )


def _choice(
    part: Part, where: str, row: Row, folder: Path, skipped: Counter[str]
) -> Iterator[Question]:
    image = _image(row, folder, where)
    texts = [str(option) for option in row.get("options") or ()]
    answer = str(row.get("answer") or "")
    if answer and answer not in texts:
        texts.append(answer)
    at = sum(map(ord, where)) % max(len(texts), 1)
    if answer:
        texts.remove(answer)
        texts.insert(at, answer)
    options = lettered(texts)
    letter = correct_letter(answer, options)
    if letter is None or len(options) < 2:
        skipped["no answer, or fewer than two options"] += 1
        return
    by: By = "name" if image is None else "portrait"
    question = str(row.get("question") or NAMING)
    yield Question(part, where, "classification", by, question, letter, image, options)


def _image(row: Row, folder: Path, where: str) -> Portrait | None:
    return portrait_of(row.get("image"), folder, f"{folder}: {where}")
