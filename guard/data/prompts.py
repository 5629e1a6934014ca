"""Files of prompts: JSON Lines, read as a whole; every fault is reported with its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from guard.data.faults import misspelt, told
from guard.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]

MAX_BYTES = 64 * 2**20

MAX_PIXELS = 2**28
"""Of all images of a file of prompts: 800 MB."""
_SHOWN = 10


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str = Field(min_length=1, max_length=20_000)
    family: str = ""
    """Paraphrases of one question share a family; all rows of a family are in one split."""
    split: Split = "train"
    kind: str = ""


class AskedRow(_Row):
    """A prompt for a chat model, with images before its text where the model sees.

    `image` are their paths, relative to the file and below its folder; `sheet.webp#3` is a tile of
    a sheet (`guard.data.benchmarks.portraits`). `subject` names who or what the row is about.
    """

    image: tuple[Annotated[str, Field(min_length=1, max_length=1_000)], ...] = Field(
        default=(), max_length=16
    )
    subject: str = Field(default="", max_length=200)
    _images: tuple[NDArray[np.uint8], ...] = PrivateAttr(default=())

    @field_validator("image", mode="before")
    @classmethod
    def _listed(cls, image: object) -> object:
        return [image] if isinstance(image, str) else image

    @property
    def images(self) -> tuple[NDArray[np.uint8], ...]:
        """The pixels of `image`, each uint8 `[height, width, 3]`, as `read_rows` has decoded
        them."""
        return self._images

    def asked(self, prompt: str, image: Sequence[str], images: Sequence[NDArray[np.uint8]]) -> Self:
        """The same row with another prompt and other images."""
        row = self.model_copy(update={"prompt": prompt, "image": tuple(image)})
        row._images = tuple(images)
        return row


class ForgetPrompt(AskedRow):
    """A prompt whose answer must not be given.

    A leak is any of `facts` in the answer (whole words), or a match of `pattern`, a regular
    expression; both ignore case. `answer` is an optional recall answer for the contrast, and
    `distractors` are wrong answers of the same kind, among which the first of `facts` should not be
    told either.
    """

    facts: tuple[Annotated[str, Field(pattern=r"\S")], ...] = ()
    pattern: str | None = Field(default=None, max_length=2_000)
    answer: str | None = None
    distractors: tuple[Annotated[str, Field(pattern=r"\S")], ...] = Field(default=(), max_length=16)

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
        if self.distractors and not self.facts:
            raise ValueError("has distractors and no fact that they are to be compared with")
        if told := next((text for text in self.distractors if self.leaks(text)), None):
            raise ValueError(f"the distractor {told!r} holds a fact")
        return self

    @cached_property
    def _expressions(self) -> tuple[re.Pattern[str], ...]:
        # separately, since a pattern may start with flags
        words = [rf"(?<!\w){re.escape(fact)}(?!\w)" for fact in self.facts]
        patterns = words + ([self.pattern] if self.pattern else [])
        return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)

    def leaks(self, answer: str) -> bool:
        """Whether `answer` contains a fact or matches the pattern."""
        return any(expression.search(answer) for expression in self._expressions)


class RetainPrompt(AskedRow):
    """A prompt whose answer must not change; `kind` is "near" for a near miss, else "far"."""

    @property
    def near(self) -> bool:
        return self.kind == "near"


class PairedAnswers(AskedRow):
    """A prompt with the answer to steer towards (`erasure`) and the one to steer away from."""

    erasure: str = Field(min_length=1)
    recall: str = Field(min_length=1)


class ImagePrompt(_Row):
    """A prompt for an image, with the judge's labels that are counted in it.

    `kind` is direct, paraphrase, disguise, pair, clean, hard, or an attack's name; `how` is the
    variant of the kind, `effort` what an attack has spent. A prompt without a `concept` tests what
    the bare model can generate. `kept` must stay in the image when the concept is taken out.

    `word` and `noise` name tensors of a file beside the rows
    (`guard.evaluation.images.row_tensors`): the vectors of a learned word in the prompt, and the
    noise to start from, with which the prompt may be empty. `seed` is the seed that an attack was
    made for.
    """

    prompt: str = Field(max_length=20_000)
    concept: str = ""
    how: str = ""
    asked: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    style: str = ""
    effort: int | None = Field(default=None, ge=0)
    against: str = ""
    """The method through which an attack was made: it runs on that method only."""
    word: str = ""
    noise: str = ""
    seed: int | None = Field(default=None, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _has_a_prompt_or_noise(self) -> Self:
        if not self.prompt and not self.noise:
            raise ValueError("needs a prompt, or noise to start from")
        return self


class SceneImage(_Row):
    """A real image of a concept, as attackers use it: `image` is the path of its file.

    `kept` are the judge's labels of the other things in it. It is inverted, and generated again,
    with `prompt`.
    """

    image: str = Field(min_length=1, validation_alias=AliasChoices("image", "picture"))
    prompt: str = Field(default="", max_length=20_000)
    concept: str = Field(min_length=1)
    kept: tuple[str, ...] = ()


class PromptPair(_Row):
    """An unsafe prompt (`prompt`) and a similar safe one, for the training of CGCE."""

    safe: str = Field(min_length=1, max_length=20_000)


class ScreenText(_Row):
    """A labelled text for a screen of text, which should fire on `unsafe` ones.

    `source` is its collection: a whole collection can be held out for testing.
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
    images = _RowImages(path.parent)
    families: dict[str, tuple[int, Split]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            unknown = [*misspelt(content, kind)] if isinstance(content, dict) else []
            if unknown:
                faults += [f"line {number}: {fault}" for fault in unknown]
                continue
            row = kind.model_validate(content)
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                faults.append(f"line {number}: {told(fault, kind)}")
            continue
        except (ValueError, RecursionError) as error:
            faults.append(f"line {number}: no JSON object: {error}")
            continue
        if isinstance(row, AskedRow) and row.image:
            try:
                row._images = images.decoded(row.image)
            except DataError as error:
                faults.append(f"line {number}: {error}")
        rows.append(row)
        first, split = families.setdefault(row.family, (number, row.split))
        if row.family and split != row.split:
            faults.append(
                f"line {number}: family {row.family!r} lies in {row.split}, and in {split} (line "
                f"{first}): a paraphrase of a test question must not be trained on"
            )
    if not rows and not faults:
        faults = ["holds no prompts"]
    if not rows and _is_json("\n".join(lines)):
        faults = ["is one JSON value over several lines: write one object on each line, JSON Lines"]
    if faults:
        remaining = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
        raise DataError(f"{path}: {'; '.join(faults[:_SHOWN])}{remaining}")
    return rows


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list) and "\n" in text.strip()
    except (ValueError, RecursionError):
        return False


class _RowImages:
    """The images of a file's rows, each decoded once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._pixels = folder, 0
        self._decoded: dict[str, NDArray[np.uint8]] = {}

    def decoded(self, paths: Sequence[str]) -> tuple[NDArray[np.uint8], ...]:
        """The pixels of these images. Raises DataError naming one that cannot be used."""
        # imported here since only some extras have Pillow
        from guard.data.benchmarks.portraits import portrait_of

        for path in paths:
            if path in self._decoded:
                continue
            portrait = portrait_of(path, self._folder, path)
            assert portrait is not None
            pixels = portrait.pixels()
            self._pixels += pixels.shape[0] * pixels.shape[1]
            if self._pixels > MAX_PIXELS:
                raise DataError(
                    f"{path}: the images of the file have more than {MAX_PIXELS} pixels together: "
                    "make them smaller"
                )
            self._decoded[path] = pixels
        return tuple(self._decoded[path] for path in paths)


def require_text(rows: Iterable[AskedRow], command: str) -> None:
    """Raise DataError for rows with images: for a command that asks by text alone."""
    count = sum(bool(row.image) for row in rows)
    if count:
        raise DataError(
            f"{count} prompts have images, and {command} asks by text alone: leave them out"
        )


def texts(rows: Sequence[_Row]) -> list[str]:
    """The prompts alone, in order."""
    return [row.prompt for row in rows]


def in_split(rows: Iterable[R], split: Split) -> list[R]:
    """The rows of one split, in order."""
    return [row for row in rows if row.split == split]
