"""Rows from a few examples and the banks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from guard.data.prompts import ScreenText
from guard.errors import DataError
from guard.fitting.screens import examples
from guard.fitting.screens.examples import BANK, NEAREST, read_lines, rows_of, with_near_misses
from guard.fitting.screens.windows import TextWindows


def test_a_file_has_one_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\ufeffone\n\n two \none\n", "utf-8")
    assert read_lines(path) == ["one", "two"]
    with pytest.raises(DataError, match="has 2 different texts: give 8"):
        read_lines(path, 8)
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        read_lines(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_lines(tmp_path / "none.txt")


def test_an_example_is_not_benign_too() -> None:
    rows = rows_of(["location", "where is my ex"], ["a benign one"])
    assert [row.prompt for row in rows if row.unsafe] == ["location", "where is my ex"]
    benign = [row.prompt for row in rows if not row.unsafe]
    assert "location" not in benign and benign[0] == "a benign one" and len(benign) > 2_000


def test_the_nearest_are_near_misses_and_the_same_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(examples, "NEAR", 1)
    names = ("example", "same", "near", "far", "given")
    sources = ("examples", BANK, BANK, BANK, "given")
    rows = [
        ScreenText(text=name, unsafe=name == "example", source=source)
        for name, source in zip(names, sources, strict=True)
    ]
    cosines = np.array([1, 0.95, 0.5, 0.1, 0.99], np.float32)
    embeddings = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)
    order = np.arange(5)
    windows = TextWindows(
        embeddings,
        embeddings,
        [[0]] * 5,
        1,
        order,
        np.ones(5, bool),
        np.zeros(5, bool),
        np.zeros(5, bool),
    )
    kept, chosen = with_near_misses(rows, windows)
    assert [(row.prompt, row.source) for row in kept] == [
        ("example", "examples"),
        ("near", NEAREST),
        ("far", BANK),
        ("given", "given"),
    ]
    assert chosen.text.tolist() == [0, 1, 2, 3]
    assert np.array_equal(chosen.embeddings, embeddings[[0, 2, 3, 4]])
