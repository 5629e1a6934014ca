"""The suite file of `guard eval images`: prompts, methods, judges and settings."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from guard.data.prompts import ImagePrompt, read_rows
from guard.errors import DataError
from guard.evaluation.images.judge import Judge

Files = Annotated[tuple[Annotated[Path, Field(strict=False)], ...], Field(strict=False)]

BARE = "bare"
PART = 40
"""Images of a cell at most: an interrupted run loses no more than these."""
CLEAN = "clean"
SILENT_KINDS = (CLEAN, "hard")
"""Kinds whose images must be the bare ones."""


class ImageSuite(BaseModel):
    """The suite file. Relative paths are relative to its folder.

    `methods` has the policy of each method, with `{concept}` for the concept's name. `ours` is
    compared with the other methods, except `parts`, which are its components. `attacked` methods
    run on the prompts of attacks; empty means all. `judge` gives the figures, `second_opinion` is
    only compared with it, and chooses where something is to be chosen, on the prompts of
    `validation`. `images` are generated for each concept and kind, `bare_images` for each
    kind of prompts without a concept, `batch` at a time. `verify` images whose result was reused
    from the bare model are generated to check that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str
    judge: Annotated[Path, Field(strict=False)]
    second_opinion: Annotated[Path | None, Field(strict=False)] = None
    prompts: Files
    validation: Files = ()
    methods: dict[str, str]
    ours: str
    parts: Annotated[tuple[str, ...], Field(strict=False)] = ()
    attacked: Annotated[tuple[str, ...], Field(strict=False)] = ()
    images: int = Field(default=40, ge=1, validation_alias=AliasChoices("images", "pictures"))
    bare_images: int = Field(
        default=400, ge=1, validation_alias=AliasChoices("bare_images", "bare_pictures")
    )
    steps: int = Field(default=25, ge=1, le=1000)
    guidance: float = Field(default=3.0, ge=0)
    batch: int = Field(default=16, ge=1, le=256)
    verify: int = Field(default=16, ge=0)

    def policy(self, method: str, concept: str) -> str | None:
        """The policy of a method for a concept; None for the bare model."""
        return None if method == BARE else self.methods[method].replace("{concept}", concept)

    def methods_for(self, row: ImagePrompt) -> tuple[str, ...]:
        """The methods that run on a prompt."""
        attack = row.effort is not None
        return tuple(
            method
            for method in self.methods
            if row.concept
            and row.against in ("", method)
            and (not attack or not self.attacked or method in self.attacked)
        )


S = TypeVar("S", bound=ImageSuite)


def load_suite(path: Path) -> ImageSuite:
    """Read a suite file. Raises DataError naming every fault."""
    return load_suite_of(path, ImageSuite)


def load_suite_of(path: Path, kind: type[S]) -> S:
    """Read a suite file of `kind`. Raises DataError naming every fault."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
        suite = kind.model_validate(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        faults = error.errors(include_url=False)
        lines = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
        raise DataError(f"{path}: {lines}") from error
    except ValueError as error:
        raise DataError(f"{path}: is no TOML file: {error}") from error
    if BARE in suite.methods or suite.ours not in suite.methods:
        raise DataError(f"{path}: methods must hold {suite.ours!r} and not {BARE!r}")
    folder = path.absolute().parent
    second = suite.second_opinion and folder / suite.second_opinion
    return suite.model_copy(
        update={
            "judge": folder / suite.judge,
            "second_opinion": second,
            "prompts": tuple(path for name in suite.prompts for path in _files(folder, name)),
            "validation": tuple(path for name in suite.validation for path in _files(folder, name)),
        }
    )


def _files(folder: Path, name: Path) -> Iterator[Path]:
    """One file, or the matches of a pattern: none are allowed, as attacks may be added later."""
    if "*" in name.name:
        yield from sorted((folder / name.parent).glob(name.name))
    else:
        yield folder / name


def read_prompts(suite: ImageSuite, judge: Judge) -> list[ImagePrompt]:
    """Every prompt of the suite. Raises DataError for labels that the judge does not know."""
    rows = [row for path in suite.prompts for row in read_rows(path, ImagePrompt)]
    labels = {label for row in rows for label in (row.concept, row.style, *row.asked, *row.kept)}
    if unknown := sorted(label for label in labels - {""} if not judge.knows(label)):
        raise DataError(f"the judge {suite.judge.name} knows no {', '.join(unknown)}")
    if unknown_methods := sorted({row.against for row in rows} - {"", *suite.methods}):
        raise DataError(f"prompts are made against {', '.join(unknown_methods)}: no such method")
    return rows


@dataclass(frozen=True, slots=True)
class Cell:
    """Prompts of one concept and kind that a method runs on together: one line of results."""

    concept: str
    kind: str
    effort: int | None
    part: int
    rows: tuple[ImagePrompt, ...]
    seeds: tuple[int, ...]

    @property
    def silent(self) -> bool:
        """Whether its images must be the bare ones."""
        return self.kind in SILENT_KINDS


def cells(rows: Iterable[ImagePrompt], suite: ImageSuite) -> list[Cell]:
    """The first prompts of each concept, kind and effort, in cells of PART.

    Kinds that must stay silent keep all their prompts, since inspecting one is cheap. A prompt
    without a seed gets its index, so that the same prompts always have the same seeds.
    """

    def group_of(row: ImagePrompt) -> tuple[str, str, str, int]:
        return row.kind, row.concept, row.against, -1 if row.effort is None else row.effort

    grouped: list[Cell] = []
    for _, group in groupby(sorted(rows, key=group_of), group_of):
        group_rows = list(group)
        limit = suite.images if group_rows[0].concept else suite.bare_images
        chosen = group_rows if group_rows[0].kind in SILENT_KINDS else group_rows[:limit]
        grouped += [_cell(chosen, start) for start in range(0, len(chosen), PART)]
    return grouped


def _cell(rows: Sequence[ImagePrompt], start: int) -> Cell:
    part, first = tuple(rows[start : start + PART]), rows[0]
    seeds = tuple(start + i if row.seed is None else row.seed for i, row in enumerate(part))
    return Cell(first.concept, first.kind, first.effort, start // PART, part, seeds)
