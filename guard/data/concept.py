"""Concept files: phrases that ask for a concept, and phrases that only resemble it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guard.data.faults import told
from guard.errors import DataError

MAX_BYTES = 2**20
NAME_PATTERN = r"^[a-z0-9-]+/[a-z0-9-]+$"
NAME_LENGTH = 100

Phrase = Annotated[str, Field(min_length=1, max_length=300, pattern=r"\S")]


class Phrases(BaseModel):
    """Phrases that ask for a concept, for fitting and for calibration; none is in both.

    Cross-fitted methods (CGCE) distribute both over the folds. The first of `train` is the
    concept's name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    train: tuple[Phrase, ...] = Field(min_length=1, strict=False)
    validation: tuple[Phrase, ...] = Field(default=(), strict=False)


class Concept(BaseModel):
    """One concept file, JSON.

    `name` is `kind/name`. `hard_negatives` are phrases with similar words and another meaning.
    `replacements` take the concept's place in the safe half of a pair. A guard that refines leads
    to those that are also in `instead`; without any it leads to prompts without the concept, which
    is not enough for a style that the model may use unasked. `companions` are things beside the
    concept, or by themselves; `endings` follow some of the prompts ("in watercolour"). If the
    concept itself is such an ending, as a style is, `ending` is true, and its phrases and
    replacements follow the companions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=NAME_PATTERN, max_length=NAME_LENGTH)
    description: str = Field(default="", max_length=2_000)
    phrases: Phrases
    hard_negatives: tuple[Phrase, ...] = Field(min_length=6, strict=False)
    replacements: tuple[Phrase, ...] = Field(min_length=1, strict=False)
    instead: tuple[Phrase, ...] = Field(default=(), strict=False)
    companions: tuple[Phrase, ...] = Field(default=(), strict=False)
    endings: tuple[Phrase, ...] = Field(default=(), strict=False)
    ending: bool = False

    def first(self, count: int) -> Concept:
        """The concept with its first `count` phrases of `train` only."""
        few = {"train": self.phrases.train[:count], "validation": ()}
        return self.model_copy(update={"phrases": self.phrases.model_copy(update=few)})


def is_name(name: str) -> bool:
    """Whether a concept may be called this, `kind/name`."""
    return len(name) <= NAME_LENGTH and re.fullmatch(NAME_PATTERN, name) is not None


def read_concept(path: Path) -> Concept:
    """Read a concept file. Raises DataError naming the file and every fault."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: is larger than {MAX_BYTES} bytes: not a concept file")
        concept = Concept.model_validate_json(path.read_text("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        faults = [told(fault, Concept, "file") for fault in error.errors(include_url=False)]
        raise DataError(f"{path}: {'; '.join(faults)}") from error
    phrases = [
        *concept.phrases.train,
        *concept.phrases.validation,
        *concept.hard_negatives,
        *concept.replacements,
    ]
    duplicates = sorted({phrase for phrase in phrases if phrases.count(phrase) > 1})
    if duplicates:
        raise DataError(f"{path}: {duplicates[0]!r} occurs twice: it can have one meaning only")
    unknown = sorted({*concept.instead} - {*concept.replacements})
    if unknown:
        raise DataError(f"{path}: {unknown[0]!r} is in `instead`: add it to `replacements` too")
    return concept
