"""What has been drawn and judged so far: a line of JSON a finished cell, so that a run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from guard.data.prompts import ImagePrompt
from guard.errors import DataError
from guard.evaluation.images.judge import JudgeView
from guard.evaluation.images.suite import Cell


class JudgedImage(BaseModel):
    """What became of one prompt under one method.

    `same`: it is the bare model's image, bit for bit. `blocked`: there is none. `seen` is the
    judge's view, `second` the second opinion's; both None where nothing was drawn or taken over.
    `score` and `after` are of the guard that has the largest score. `thumbnail` is a PNG, base64,
    and so is `mask`: where guards have written on it. `distance` is how far an image is from the
    bare one, where it is asked for: the mean absolute difference of its pixels, of 255; `outside`
    is how near it is there where no mask is, where nothing but what writes in it has acted: a PSNR
    in dB, at most 99.
    """

    model_config = ConfigDict(frozen=True)

    same: bool = False
    fired: bool = False
    blocked: bool = False
    steps: int = 0
    score: float | None = None
    after: float | None = None
    seen: JudgeView | None = None
    second: JudgeView | None = None
    thumbnail: str | None = None
    mask: str | None = None
    distance: float | None = None
    outside: float | None = None

    def shows(self, label: str) -> bool:
        """Whether the judge sees it; a blocked image shows nothing."""
        return self.seen is not None and self.seen.shows(label)

    def finds(self, labels: Sequence[str]) -> bool:
        """Whether the judge finds all of them."""
        return all(self.shows(label) for label in labels)


class CellResult(BaseModel):
    """One cell under one method; `seconds` were spent on the `drawn` images alone."""

    model_config = ConfigDict(frozen=True)

    method: str
    concept: str
    kind: str
    effort: int | None
    part: int
    digest: str
    drawn: int
    seconds: float
    shots: tuple[JudgedImage, ...]


def cell_digest(cell: Cell, *parts: object) -> str:
    """What a cell's results depend on: its prompts and seeds, and the `parts` that are given."""
    rows = [row.model_dump(exclude=_unused(row)) for row in cell.rows]
    content = [cell.kind, rows, cell.seeds, [str(part) for part in parts]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _unused(row: ImagePrompt) -> set[str]:
    """Fields that most rows do without, and that then leave a digest as it was before them."""
    unused = {name for name in ("word", "noise") if not getattr(row, name)}
    return unused | ({"seed"} if row.seed is None else set())


class CellResults:
    """The file of results. A line that holds none (one that was cut off) is drawn again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[tuple[str, str], CellResult] = {}
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        self._torn = bool(content) and not content.endswith(b"\n")
        for line in content.split(b"\n"):
            with suppress(ValidationError):
                self._keep(CellResult.model_validate_json(line))

    def get(self, method: str, digest: str) -> CellResult | None:
        """The finished cell, or None."""
        return self._found.get((method, digest))

    def add(self, result: CellResult) -> None:
        """Keep a finished cell. Raises DataError where it cannot be written."""
        line = result.model_dump_json(exclude_defaults=True).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(b"\n" + line if self._torn else line)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._torn = False
        self._keep(result)

    def _keep(self, result: CellResult) -> None:
        self._found[result.method, result.digest] = result
