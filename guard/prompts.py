"""Forget and retain files: JSON Lines, read as a whole with every fault named by its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

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

    A leak is any of `facts` in the answer (case-insensitive, whole words), or `pattern`, a regular
    expression. `answer` is an optional recall answer to contrast with.
    """

    facts: tuple[str, ...] = ()
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
    def _expression(self) -> re.Pattern[str]:
        words = [rf"(?<!\w){re.escape(fact)}(?!\w)" for fact in self.facts]
        return re.compile("|".join(words + ([self.pattern] if self.pattern else [])), re.IGNORECASE)

    def leaks(self, answer: str) -> bool:
        """Whether the counted fact stands in `answer`."""
        return self._expression.search(answer) is not None


class RetainPrompt(_Row):
    """A prompt that must be answered as ever; `kind` is "near" for a near miss, else "far"."""

    @property
    def near(self) -> bool:
        return self.kind == "near"


class PairedAnswers(_Row):
    """A prompt with the answer to steer towards (`erasure`) and the one to steer from."""

    erasure: str = Field(min_length=1)
    recall: str = Field(min_length=1)


R = TypeVar("R", bound=_Row)


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """All rows of a file. Raises DataError naming the file, the lines and their faults."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: is larger than {MAX_BYTES // 2**20} MiB")
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    rows, faults = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(kind.model_validate(json.loads(line)))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "row"
            faults.append(f"line {number}: {where}: {first['msg']}")
        except ValueError as error:
            faults.append(f"line {number}: no JSON object: {error}")
    faults += _family_faults(rows)
    if not rows and not faults:
        faults = ["holds no prompts"]
    if faults:
        more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
        raise DataError(f"{path}: {'; '.join(faults[:_SHOWN])}{more}")
    return rows


def in_split(rows: Iterable[R], split: Split) -> list[R]:
    """The rows of one split, in order."""
    return [row for row in rows if row.split == split]


def _family_faults(rows: Sequence[_Row]) -> list[str]:
    splits: dict[str, set[str]] = {}
    for row in rows:
        if row.family:
            splits.setdefault(row.family, set()).add(row.split)
    return [
        f"family {family!r} lies in {', '.join(sorted(found))}: a paraphrase of a test question "
        "must not be trained on"
        for family, found in splits.items()
        if len(found) > 1
    ]
