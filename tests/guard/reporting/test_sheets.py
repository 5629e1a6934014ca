from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guard.errors import DataError
from guard.reporting.sheets import Pair, write_sheet

RED = np.full((8, 8, 3), (200, 0, 0), np.uint8)
BLUE = np.full((8, 8, 3), (0, 0, 200), np.uint8)


def test_pairs_stand_one_over_the_other(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sheet.png"
    rows = [("one", [Pair("a", RED, BLUE, "cgce"), Pair("b", RED, None)]), ("two", [])]
    write_sheet(path, rows)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    middle = pixels.shape[1] // 4
    column = pixels[:, middle]
    red = np.flatnonzero((column == RED[0, 0]).all(1))
    blue = np.flatnonzero((column == BLUE[0, 0]).all(1))
    assert len(red) and len(blue) and red.max() < blue.min()
    # the second pair has no guarded image
    other = pixels[:, 3 * middle]
    assert not (other == BLUE[0, 0]).all(1).any() and (other == (211, 211, 211)).all(1).any()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_sheet(tmp_path / "file" / "sheet.png", [("one", [Pair("a", RED, BLUE)])])
