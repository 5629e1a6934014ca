"""Forget and retain files: JSON Lines, read as a whole with every fault named by its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from guard.errors import DataError

Split = Literal["train", "validation", "test"]

MAX_BYTES = 64 * 2**20
_SHOWN = 10


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str = Field(min_length=1, max_length=20_000)
    family: str = ""
    """Paraphrases of one question share a family; a family lies in one split."""
    split: Split = "train"
    kind: str = ""


class ForgetPrompt(_Row):
    """A prompt whose answer must not come.

    A leak is any of `facts` in the answer (whole words), or `pattern`, a regular expression; both
    whatever the case. `answer` is an optional recall answer to contrast with.
    """

    facts: tuple[Annotated[str, Field(pattern=r"\S")], ...] = ()
    pattern: str | None = Field(default=None, max_length=2_000)
    answer: str | None = None

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _has_a_leak(self) -> Self:
        if not self.facts and not self.pattern:
            raise ValueError("needs facts or a pattern: what counts as a leak?")
        return self

    @cached_property
    def _expressions(self) -> tuple[re.Pattern[str], ...]:
        # one by one: a pattern may have flags, which must stand at its start
        words = [rf"(?<!\w){re.escape(fact)}(?!\w)" for fact in self.facts]
        patterns = words + ([self.pattern] if self.pattern else [])
        return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)

    def leaks(self, answer: str) -> bool:
        """Whether the counted fact stands in `answer`."""
        return any(expression.search(answer) for expression in self._expressions)


class RetainPrompt(_Row):
    """A prompt that must be answered as ever; `kind` is "near" for a near miss, else "far"."""

    @property
    def near(self) -> bool:
        return self.kind == "near"


class PairedAnswers(_Row):
    """A prompt with the answer to steer towards (`erasure`) and the one to steer from."""

    erasure: str = Field(min_length=1)
    recall: str = Field(min_length=1)


class ImagePrompt(_Row):
    """A prompt to draw, and what is counted in its image, in the labels of the judge.

    `kind` is direct, paraphrase, disguise, pair, clean, hard, or an attack's name; `how` says which
    of the kind's ways made it, `effort` how much an attack has spent on it. Without a `concept` it
    asks for what the model is able to draw. `kept` must survive where the concept is taken out.

    `word` and `noise` name tensors of a file beside the rows
    (`guard.evaluation.images.row_tensors`): the vectors of a learned word that stands in the
    prompt, and the noise to draw from, for which the prompt may be empty. `seed` is the one that it
    was made for.
    """

    prompt: str = Field(max_length=20_000)
    concept: str = ""
    how: str = ""
    asked: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    style: str = ""
    effort: int | None = Field(default=None, ge=0)
    against: str = ""
    """The only method that it is played against, where it was made through that one."""
    word: str = ""
    noise: str = ""
    seed: int | None = Field(default=None, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.prompt and not self.noise:
            raise ValueError("needs a prompt, or noise to draw from")
        return self


class SceneImage(_Row):
    """A real image with a concept, as attackers use it: `image` is the path of its file.

    `kept` are the other things in it, in the labels of the judge. It is led to noise, and drawn
    again, under `prompt`.
    """

    image: str = Field(min_length=1, validation_alias=AliasChoices("image", "picture"))
    prompt: str = Field(default="", max_length=20_000)
    concept: str = Field(min_length=1)
    kept: tuple[str, ...] = ()


class PromptPair(_Row):
    """An unsafe prompt (`prompt`) and a similar safe one, as CGCE is taught with."""

    safe: str = Field(min_length=1, max_length=20_000)


class ScreenText(_Row):
    """A text for a screen of texts, which is to fire where it is `unsafe`.

    `source` names the collection it comes from: a whole one can be held out to test on.
    """

    prompt: str = Field(min_length=1, max_length=200_000, alias="text")
    unsafe: bool
    source: str = Field(min_length=1, max_length=100)


R = TypeVar("R", bound=_Row)


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """All rows of a file. Raises DataError naming the file, the lines and their faults."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: is larger than {MAX_BYTES // 2**20} MiB")
        # not splitlines: JSON strings may hold other line separators as they are
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    rows: list[R] = []
    faults: list[str] = []
    families: dict[str, tuple[int, Split]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = kind.model_validate(json.loads(line))
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                where = ".".join(map(str, fault["loc"])) or "row"
                faults.append(f"line {number}: {where}: {fault['msg']}")
            continue
        except (ValueError, RecursionError) as error:
            faults.append(f"line {number}: no JSON object: {error}")
            continue
        rows.append(row)
        first, split = families.setdefault(row.family, (number, row.split))
        if row.family and split != row.split:
            faults.append(
                f"line {number}: family {row.family!r} lies in {row.split}, and in {split} (line "
                f"{first}): a paraphrase of a test question must not be trained on"
            )
    if not rows and not faults:
        faults = ["holds no prompts"]
    if faults:
        more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
        raise DataError(f"{path}: {'; '.join(faults[:_SHOWN])}{more}")
    return rows


def texts(rows: Sequence[_Row]) -> list[str]:
    """The prompts alone, in order."""
    return [row.prompt for row in rows]


def in_split(rows: Iterable[R], split: Split) -> list[R]:
    """The rows of one split, in order."""
    return [row for row in rows if row.split == split]
