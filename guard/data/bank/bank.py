"""The prompts of the retain bank: topics that form a tree, each asked about in several styles.

Topics of one area are near each other. All prompts of a topic lie in one split.
"""

from __future__ import annotations

import hashlib
import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from guard.data.prompts import ForgetPrompt, RetainPrompt, Split

_FOLDER = Path(__file__).parent

PROMPTS = 10
"""Of each topic; half of them have the wordings of its kind, half are such as fit any topic."""

_SPLITS: tuple[Split, ...] = (
    *("train", "train", "validation", "train", "train"),
    *("test", "train", "validation", "train", "train"),
)
"""By the place of a topic in its area."""


@dataclass(frozen=True)
class Topic:
    """A topic with its place in the tree and its prompts."""

    name: str
    kind: str
    area: str
    split: Split
    prompts: tuple[str, ...]

    @property
    def rows(self) -> list[RetainPrompt]:
        """The prompts as rows; a family is a topic."""
        return [
            RetainPrompt(prompt=prompt, family=self.name, split=self.split)
            for prompt in self.prompts
        ]


@cache
def topics() -> tuple[Topic, ...]:
    """All topics, in the order of the tree."""
    wordings = templates()
    found = []
    for kind, areas in _read("topics.toml").items():
        for area, names in areas.items():
            for place, name in enumerate(names):
                split = _SPLITS[place % len(_SPLITS)]
                found.append(Topic(name, kind, area, split, _asked(name, kind, wordings)))
    return tuple(found)


@cache
def templates() -> Mapping[str, Sequence[str]]:
    """Wordings by kind of topic, `{t}` for the topic; "any" fits all kinds."""
    return _read("templates.toml")


@cache
def reference() -> tuple[ForgetPrompt, ...]:
    """Questions about the concepts that a model's profile is measured on; `subject` is the
    concept, a topic of the train split."""
    return tuple(
        ForgetPrompt(prompt=question, facts=tuple(facts), subject=name)
        for name, questions in _read("reference.toml").items()
        for question, facts in questions.items()
    )


def digest() -> str:
    """SHA-256 (hex) of all prompts: a profile is of the bank that it was computed from."""
    content = [(topic.name, topic.split, topic.prompts) for topic in topics()]
    content_of_reference = [(row.prompt, row.facts) for row in reference()]
    return hashlib.sha256(repr([content, content_of_reference]).encode()).hexdigest()


def _asked(name: str, kind: str, wordings: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    # by name: a new topic changes no other one's prompts
    rng = random.Random(name)
    half = PROMPTS // 2
    chosen = rng.sample(wordings["any"], PROMPTS - half) + rng.sample(wordings[kind], half)
    return tuple(wording.replace("{t}", name) for wording in chosen)


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / name).read_text("utf-8"))
