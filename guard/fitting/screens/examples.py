"""Rows for a screen from a few examples: what is benign comes from the banks of this program.

Bank texts that are nearly the same as an example say the concept themselves and are left out. The
nearest of the others are the near misses, a source of their own, so that the false-positive rate
holds on them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classifiers.embeddings.heads import Floats
from guard.data.bank.bank import topics
from guard.data.prompts import ScreenText
from guard.data.traffic.traffic import families
from guard.errors import DataError
from guard.fitting.screens.windows import TextWindows

FEWEST = 8
"""Examples under which no figure of a fit says anything."""
MOST = 5_000
_MAX_BYTES = 2**20
_MAX_CHARS = 20_000
NEAR = 300
"""The near misses: three of them may fire at a rate of 1 %."""
_SAME = 0.8
"""The cosine from which on a text of the bank is taken for another wording of an example."""
_PER_TOPIC = 5
BANK, NEAREST, GIVEN = "bank", "near misses", "given"


def read_lines(path: Path, fewest: int = 1) -> list[str]:
    """The texts of a file, one a line, each once. Raises DataError that says what to change."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: is larger than {_MAX_BYTES // 2**20} MiB")
        content = path.read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    lines = list(dict.fromkeys(line.strip() for line in content.split("\n") if line.strip()))
    if long := next((n for n, line in enumerate(lines, 1) if len(line) > _MAX_CHARS), None):
        raise DataError(f"{path}: text {long} has more than {_MAX_CHARS} characters: shorten it")
    if not fewest <= len(lines) <= MOST:
        raise DataError(
            f"{path}: has {len(lines)} different texts: give {fewest} to {MOST}, one a line"
        )
    return lines


def rows_of(examples: Sequence[str], benign: Sequence[str]) -> list[ScreenText]:
    """The examples as unsafe rows, `benign` and the banks as benign ones."""
    rows = [_row(text, True, "examples", "") for text in examples]
    rows += [_row(text, False, GIVEN, "") for text in benign]
    taken = {*examples, *benign}
    for family in families():
        rows += [_row(t, False, BANK, family.name) for t in family.texts if t not in taken]
    for topic in topics():
        asked = topic.prompts[:: len(topic.prompts) // _PER_TOPIC]
        rows += [_row(text, False, BANK, topic.name) for text in asked if text not in taken]
    return rows


def with_near_misses(
    rows: Sequence[ScreenText], windows: TextWindows
) -> tuple[list[ScreenText], TextWindows]:
    """The rows, and their windows, without other wordings of the examples in the bank; its texts
    that are nearest to an example have the source `near misses`."""
    nearness = _nearness(rows, windows)
    of_bank = np.array([row.source == BANK for row in rows])
    nearest = np.flatnonzero(of_bank & (nearness < _SAME))
    nearest = nearest[np.argsort(-nearness[nearest], kind="stable")][:NEAR]
    near = set(nearest.tolist())
    kept = np.flatnonzero(~of_bank | (nearness < _SAME))
    chosen = [
        rows[i].model_copy(update={"source": NEAREST}) if i in near else rows[i]
        for i in kept.tolist()
    ]
    return chosen, windows.of_texts(kept)


def _nearness(rows: Sequence[ScreenText], windows: TextWindows) -> NDArray[np.float32]:
    """The highest cosine of any window of a text with any of an example, `[texts]`."""
    unsafe = np.array([row.unsafe for row in rows])
    whole = ~windows.sentence
    examples: Floats = windows.embeddings[unsafe[windows.text] & windows.first & whole]
    nearness = np.full(len(rows), -1, np.float32)
    found = (windows.embeddings[whole] @ examples.T).max(axis=1)
    np.maximum.at(nearness, windows.text[whole], found)
    return nearness


def _row(text: str, unsafe: bool, source: str, family: str) -> ScreenText:
    return ScreenText(text=text, unsafe=unsafe, source=source, family=family)
