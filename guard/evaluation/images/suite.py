"""The file that says what `guard eval images` draws, with which methods, and who judges it."""

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

BARE = "bare"
PART = 40
"""Images of a cell at most: what an interrupted run has to draw again."""
CLEAN = "clean"
SILENT_KINDS = (CLEAN, "hard")
"""Kinds whose images must be the bare ones."""


class ImageSuite(BaseModel):
    """The suite file. Relative paths are taken from its own folder.

    `methods` names the policy of each method, with `{concept}` for the concept's name; `ours` is
    the method that is held against the others, of which `parts` are what it is made of and no
    baselines; `attacked` are those that play the prompts of
    attacks, all of them where it is empty. `judge` gives the figures, `second_opinion` is only
    compared with it. `images` is how many are drawn for each concept and kind, `bare_images`
    how many for each kind of prompts without a concept, `batch` how many at once; `verify` is how
    many images that were taken over from the bare model, since nothing acted on them, are drawn
    all the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str
    judge: Annotated[Path, Field(strict=False)]
    second_opinion: Annotated[Path | None, Field(strict=False)] = None
    prompts: Annotated[tuple[Annotated[Path, Field(strict=False)], ...], Field(strict=False)]
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
        """The methods that a prompt is played against."""
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
    """Raises DataError naming every fault."""
    return loaded(path, ImageSuite)


def loaded(path: Path, kind: type[S]) -> S:
    """A suite file of `kind`. Raises DataError naming every fault."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
        suite = kind.model_validate(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        faults = error.errors(include_url=False)
        told = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
        raise DataError(f"{path}: {told}") from error
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
            "prompts": tuple(found for given in suite.prompts for found in _files(folder, given)),
        }
    )


def _files(folder: Path, given: Path) -> Iterator[Path]:
    """A file, or those that a pattern finds: none is no fault, attacks may come later."""
    if "*" in given.name:
        yield from sorted((folder / given.parent).glob(given.name))
    else:
        yield folder / given


def read_prompts(suite: ImageSuite, judge: Judge) -> list[ImagePrompt]:
    """Every prompt of the suite. Raises DataError where one names what the judge cannot tell."""
    rows = [row for path in suite.prompts for row in read_rows(path, ImagePrompt)]
    labels = {label for row in rows for label in (row.concept, row.style, *row.asked, *row.kept)}
    if unknown := sorted(label for label in labels - {""} if not judge.knows(label)):
        raise DataError(f"the judge {suite.judge.name} knows no {', '.join(unknown)}")
    if unplayed := sorted({row.against for row in rows} - {"", *suite.methods}):
        raise DataError(f"prompts are made against {', '.join(unplayed)}: no such method")
    return rows


@dataclass(frozen=True, slots=True)
class Cell:
    """Prompts of one concept and kind: what one method draws in one go, and one line of results."""

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

    Kinds that must stay silent keep all their prompts: looking at one is cheap. A prompt's seed is
    its place among them where it has none of its own, so that the same prompts always have the same
    seeds.
    """

    def place(row: ImagePrompt) -> tuple[str, str, str, int]:
        return row.kind, row.concept, row.against, -1 if row.effort is None else row.effort

    found: list[Cell] = []
    for _, group in groupby(sorted(rows, key=place), place):
        every = list(group)
        limit = suite.images if every[0].concept else suite.bare_images
        chosen = every if every[0].kind in SILENT_KINDS else every[:limit]
        found += [_cell(chosen, at) for at in range(0, len(chosen), PART)]
    return found


def _cell(rows: Sequence[ImagePrompt], at: int) -> Cell:
    own, first = tuple(rows[at : at + PART]), rows[0]
    seeds = tuple(at + i if row.seed is None else row.seed for i, row in enumerate(own))
    return Cell(first.concept, first.kind, first.effort, at // PART, own, seeds)
