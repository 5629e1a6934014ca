"""The file of finished cells: one line of JSON each, so that an interrupted run can continue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from guard.data.prompts import ImagePrompt
from guard.errors import DataError
from guard.evaluation.images.interface import PromptEffect
from guard.evaluation.images.judge import JudgeView
from guard.evaluation.images.suite import Cell


class JudgedImage(BaseModel):
    """The outcome of one prompt under one method.

    `same`: the image is the bare model's, bit for bit. `blocked`: there is no image. `view` is the
    judge's, `second_view` the second opinion's; both are None if no image was generated or reused.
    `score` and `after` are those of the guard with the largest score. `thumbnail` is a PNG in
    base64, and so is `mask`, which shows where guards have written. `distance` is the mean absolute
    difference to the bare image's pixels, of 255, if it was measured. `outside` is the PSNR to the
    bare image outside of the mask, in dB, at most 99, if nothing but the masked guards acted.
    """

    model_config = ConfigDict(frozen=True)

    same: bool = False
    fired: bool = False
    blocked: bool = False
    steps: int = 0
    score: float | None = None
    after: float | None = None
    view: JudgeView | None = Field(
        default=None,
        validation_alias=AliasChoices("seen", "view"),
        serialization_alias="seen",
    )
    second_view: JudgeView | None = Field(
        default=None,
        validation_alias=AliasChoices("second", "second_view"),
        serialization_alias="second",
    )
    thumbnail: str | None = None
    mask: str | None = None
    distance: float | None = None
    outside: float | None = None

    @classmethod
    def of(cls, effect: PromptEffect) -> JudgedImage:
        """The outcome of a prompt before a judge has seen its image."""
        return cls(**{name: value for name, value in asdict(effect).items() if name != "late"})

    def shows(self, label: str) -> bool:
        """Whether the judge sees a concept or style; a blocked image shows nothing."""
        return self.view is not None and self.view.shows(label)

    def shows_all(self, labels: Sequence[str]) -> bool:
        """Whether the judge sees all of these."""
        return all(self.shows(label) for label in labels)


class CellResult(BaseModel):
    """The result of one cell under one method; `seconds` is the time of the `generated` images."""

    model_config = ConfigDict(frozen=True)

    method: str
    concept: str
    kind: str
    effort: int | None
    part: int
    digest: str
    generated: int = Field(
        validation_alias=AliasChoices("drawn", "generated"), serialization_alias="drawn"
    )
    seconds: float
    images: tuple[JudgedImage, ...] = Field(
        validation_alias=AliasChoices("shots", "images"), serialization_alias="shots"
    )


def cell_digest(cell: Cell, *parts: object) -> str:
    """A digest of everything a cell's results depend on: its prompts and seeds, and `parts`."""
    rows = [row.model_dump(exclude=_unused(row)) for row in cell.rows]
    content = [cell.kind, rows, cell.seeds, [str(part) for part in parts]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _unused(row: ImagePrompt) -> set[str]:
    """Fields that are newer than the digest: without a value they must not change it."""
    unused = {name for name in ("word", "noise") if not getattr(row, name)}
    return unused | ({"seed"} if row.seed is None else set())


class CellResults:
    """The file of results. A line that is no result (one that was cut off) is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results: dict[tuple[str, str], CellResult] = {}
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        self._torn = bool(content) and not content.endswith(b"\n")
        for line in content.split(b"\n"):
            with suppress(ValidationError):
                self._keep(CellResult.model_validate_json(line))

    def get(self, method: str, digest: str) -> CellResult | None:
        """The result of a finished cell, or None."""
        return self._results.get((method, digest))

    def add(self, result: CellResult) -> None:
        """Append the result of a cell. Raises DataError if the file cannot be written."""
        line = result.model_dump_json(exclude_defaults=True, by_alias=True).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(b"\n" + line if self._torn else line)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._torn = False
        self._keep(result)

    def _keep(self, result: CellResult) -> None:
        self._results[result.method, result.digest] = result
