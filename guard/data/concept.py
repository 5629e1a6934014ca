"""A concept in words: what must not be drawn, how it is asked for, what only sounds like it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guard.errors import DataError

MAX_BYTES = 2**20

Phrase = Annotated[str, Field(min_length=1, max_length=300, pattern=r"\S")]


class Phrases(BaseModel):
    """Ways to ask for a concept, those to fit on and those to calibrate on. None is in both.

    Fits that take turns (CGCE) deal out both; the first of `train` is the concept's name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    train: tuple[Phrase, ...] = Field(min_length=1, strict=False)
    validation: tuple[Phrase, ...] = Field(default=(), strict=False)


class Concept(BaseModel):
    """One concept file, JSON.

    `name` is `kind/name`. `hard_negatives` are phrases that come near the concept in words but do
    not mean it. `replacements` take its place in the safe half of a pair. Those of them that stand
    in `instead` too are what a guard that refines leads to, rather than to what the model draws
    when the concept is not said at all: for a style, which it might draw all the same.
    `companions` are things that are asked for beside it, or alone; `endings` are put behind some of
    the prompts ("in watercolour"). Where the concept is itself such an ending, a style say,
    `ending` is true: then its phrases and replacements stand behind the companions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$", max_length=100)
    description: str = Field(default="", max_length=2_000)
    phrases: Phrases
    hard_negatives: tuple[Phrase, ...] = Field(min_length=6, strict=False)
    replacements: tuple[Phrase, ...] = Field(min_length=1, strict=False)
    instead: tuple[Phrase, ...] = Field(default=(), strict=False)
    companions: tuple[Phrase, ...] = Field(default=(), strict=False)
    endings: tuple[Phrase, ...] = Field(default=(), strict=False)
    ending: bool = False


def read_concept(path: Path) -> Concept:
    """Raises DataError naming the file and every fault."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: is larger than {MAX_BYTES} bytes: not a concept file")
        concept = Concept.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        ]
        raise DataError(f"{path}: {'; '.join(faults)}") from error
    known = [
        *concept.phrases.train,
        *concept.phrases.validation,
        *concept.hard_negatives,
        *concept.replacements,
    ]
    twice = sorted({phrase for phrase in known if known.count(phrase) > 1})
    if twice:
        raise DataError(f"{path}: {twice[0]!r} stands in it twice: it can mean one thing only")
    strange = sorted({*concept.instead} - {*concept.replacements})
    if strange:
        raise DataError(f"{path}: {strange[0]!r} of `instead` must stand in `replacements` too")
    return concept
