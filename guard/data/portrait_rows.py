"""Questions that name somebody, asked once more by portrait."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from guard.data.benchmarks.portraits import portrait_of
from guard.data.prompts import ForgetPrompt
from guard.errors import DataError

STAND_IN = "this person"
"""What a question by portrait has in place of the name."""

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def with_portraits(rows: Sequence[ForgetPrompt], folder: Path) -> list[ForgetPrompt]:
    """`rows`, and behind them each row without an image that names its `subject`, with a portrait
    before it and STAND_IN in place of the name.

    `folder` has the portraits: a folder for each subject, named as the subject is, or image files
    alone where the rows have one subject. Portraits take turns; with three at least, every third is
    for the validation split and every third for the test split, so that a fit is judged by
    portraits that it has not seen.

    Raises DataError for a folder without portraits of a subject, and where no row names one.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder of portraits")
    subjects = list(dict.fromkeys(row.subject for row in rows if row.subject))
    files = {subject: _files(folder, subject, len(subjects) == 1) for subject in subjects}
    turns: dict[tuple[str, str], int] = {}
    asked = []
    for row in rows:
        if row.image or not row.subject:
            continue
        name = re.compile(rf"(?<!\w){re.escape(row.subject)}(?!\w)", re.IGNORECASE)
        if not name.search(row.prompt):
            continue
        portraits = _for_split(files[row.subject], row.split)
        turn = turns.setdefault((row.subject, row.split), 0)
        turns[row.subject, row.split] = turn + 1
        file = portraits[turn % len(portraits)]
        path = str(file.relative_to(folder))
        portrait = portrait_of(path, folder, str(file))
        assert portrait is not None
        asked.append(row.asked(_replaced(name, row.prompt), [path], [portrait.pixels()]))
    if not asked:
        raise DataError(
            f'{folder}: no forget prompt names its subject: give rows a "subject" that their '
            "prompt holds, or leave out --portraits"
        )
    return [*rows, *asked]


def _replaced(name: re.Pattern[str], prompt: str) -> str:
    """The prompt with STAND_IN for each name, and a capital where it begins the prompt."""
    replaced = name.sub(STAND_IN, prompt)
    return replaced[:1].upper() + replaced[1:] if name.match(prompt) else replaced


def _files(folder: Path, subject: str, alone: bool) -> list[Path]:
    inside = folder / subject
    if inside.resolve().parent != folder.resolve() or not inside.is_dir():
        if not alone:
            raise DataError(f"{folder}: has no folder {subject!r} with portraits")
        inside = folder
    files = sorted(f for f in inside.iterdir() if f.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"{inside}: has no portraits (PNG, JPEG or WebP files)")
    return files


def _for_split(files: Sequence[Path], split: str) -> Sequence[Path]:
    if len(files) < 3:
        return files
    return files[("train", "validation", "test").index(split) :: 3]
