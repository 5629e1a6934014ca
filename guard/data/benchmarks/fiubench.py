"""FIUBench (Ma et al., arXiv 2411.03554) as released: faces of fictitious people, private facts.

`full.json` is a list of `{unique_id, image_path, qa_list}`, of which the first 400 are the
benchmark; an entry of `qa_list` has `question`, `answer`, `paraphrased_question` (one or several),
`keywords`. `split.json` has the IDs, or the places in the list, of `forget1`, `forget5`,
`forget10` and the `retain` sets. Paraphrased questions are the part "test".
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from guard.data.benchmarks.portraits import portrait_of
from guard.data.benchmarks.questions import Benchmark, Part, Question
from guard.data.benchmarks.rows import Row, read_part
from guard.errors import DataError

SHARES = (1, 5, 10)
PEOPLE = 400


def is_fiubench(folder: Path) -> bool:
    """Whether the folder holds this data set."""
    return (folder / "full.json").is_file() and (folder / "split.json").is_file()


def load_fiubench(folder: Path, share: int) -> Benchmark:
    """The benchmark at a share of SHARES. Raises DataError naming the file and the row."""
    people = {
        str(row.get("unique_id")): row for row in list(read_part(folder / "full.json"))[:PEOPLE]
    }
    splits = _splits(folder / "split.json")
    forgotten = _chosen(splits, f"forget{share}", people, folder)
    skipped: Counter[str] = Counter()
    questions: list[Question] = []
    for person, row in people.items():
        part: Part = "forget" if person in forgotten else "retain"
        questions += _questions(part, person, row, folder, skipped)
    return Benchmark(folder.resolve().name, share, tuple(questions), forgotten, skipped=skipped)


def _splits(path: Path) -> Mapping[str, Any]:
    try:
        splits = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is no JSON file: {error}") from error
    if not isinstance(splits, dict):
        raise DataError(f"{path}: is no JSON object")
    return splits


def _chosen(
    splits: Mapping[str, Any], name: str, people: Mapping[str, Row], folder: Path
) -> tuple[str, ...]:
    entries = splits.get(name)
    if not isinstance(entries, list) or not entries:
        known = ", ".join(key for key in splits if key.startswith("forget"))
        raise DataError(f"{folder / 'split.json'}: has no people in {name}: it has {known}")
    ids = list(people)
    chosen = []
    for entry in entries:
        person = str(entry)
        if person not in people and isinstance(entry, int) and 0 <= entry < len(ids):
            person = ids[entry]
        if person not in people:
            raise DataError(f"{folder / 'split.json'}: {name}: nobody has the ID {entry!r}")
        chosen.append(person)
    return tuple(chosen)


def _questions(
    part: Part, person: str, row: Row, folder: Path, skipped: Counter[str]
) -> Iterator[Question]:
    where = f"{folder / 'full.json'}: person {person}"
    image = portrait_of(row.get("image_path"), folder, where)
    for slot, item in enumerate(row.get("qa_list") or ()):
        if image is None or not item.get("question") or not item.get("answer"):
            skipped["no image, question or answer"] += 1
            continue
        keywords = item.get("keywords") or ()
        facts = tuple(map(str, (keywords,) if isinstance(keywords, str) else keywords))
        texts = [(part, str(item["question"]))]
        if part == "forget":
            texts += [("test", text) for text in _several(item.get("paraphrased_question"))]
        for of, text in texts:
            yield Question(
                of,
                person,
                "generation",
                "portrait",
                text,
                str(item["answer"]),
                image,
                facts=facts,
                slot=str(slot),
            )


def _several(value: Any) -> Sequence[str]:
    if not value:
        return ()
    return (value,) if isinstance(value, str) else [str(text) for text in value]
