"""The one form that all benchmarks are read into: questions about people, in parts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from guard.data.benchmarks.portraits import Portrait

Part = Literal["forget", "test", "retain", "celebrities", "scenes"]
"""The people to forget; the same people in altered portraits and other wordings; the other people;
well-known people; what has no people."""

Task = Literal["classification", "generation", "cloze"]

By = Literal["portrait", "name", "both"]
"""What the question says of whom it is about."""

PARTS: tuple[Part, ...] = ("forget", "test", "retain", "celebrities", "scenes")
TASKS: tuple[Task, ...] = ("classification", "generation", "cloze")
WAYS: tuple[By, ...] = ("portrait", "name", "both")

LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Question:
    """One question.

    `truth` is the correct option's letter for a classification, else the answer's text. `options`
    map letters to texts. `facts` are what an answer must not hold once the person is forgotten,
    as whole words; any of them counts. `slot` is shared by questions that ask the same of other
    people: their answers are the prior that a guess can use.
    """

    part: Part
    person: str
    task: Task
    by: By
    text: str
    truth: str
    portrait: Portrait | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    slot: str = ""


@dataclass(frozen=True)
class Benchmark:
    """The questions of a benchmark at one share of forgotten people.

    `names` are those of the people to forget, where the data gives names. `skipped` counts released
    questions that cannot be scored, by reason.
    """

    name: str
    share: int
    questions: tuple[Question, ...]
    forgotten: tuple[str, ...]
    names: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that have questions, in the order of PARTS."""
        present = {question.part for question in self.questions}
        return tuple(part for part in PARTS if part in present)


def digest_of(questions: Iterable[Question]) -> str:
    """The SHA-256 of the questions' texts and images."""
    digest = hashlib.sha256()
    for question in questions:
        image = question.portrait.digest if question.portrait else ""
        digest.update(json.dumps([question.text, dict(question.options), image]).encode())
    return digest.hexdigest()


def lettered(options: Any) -> dict[str, str]:
    """Options by letter, in the order of letters, from a mapping or a list; absent ones (None,
    which Parquet has for keys of other rows) are left out."""
    if isinstance(options, Mapping):
        pairs = sorted((str(key).strip().upper(), value) for key, value in options.items())
    elif isinstance(options, Sequence) and not isinstance(options, str):
        pairs = list(zip(LETTERS, options, strict=False))
    else:
        return {}
    return {
        letter: str(text).strip()
        for letter, text in pairs
        if letter in LETTERS and len(letter) == 1 and text is not None and str(text).strip()
    }


def correct_letter(answer: Any, options: Mapping[str, str]) -> str | None:
    """The letter of the correct option, from "B", "B. Paris", "(b)" or the option's text; None
    where it is none of the options."""
    text = str(answer or "").strip()
    for letter, option in options.items():
        if text.casefold() == option.casefold():
            return letter
    match = re.match(r"\(?([A-Ha-h])(?:[).:]|\s|$)", text)
    letter = match[1].upper() if match else ""
    return letter if letter in options else None
