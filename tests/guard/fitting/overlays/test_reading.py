"""Checkpoints and adapters that the libraries themselves have written, read back as changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from guard.fitting.overlays.reading import read_difference
from tests.guard.fitting.overlays.checkpoints import LAYOUTS, base, deltas


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_what_the_library_adds(layout: str, tmp_path: Path) -> None:
    source, expected = LAYOUTS[layout](tmp_path)
    difference = read_difference(source, base())
    assert layout.startswith(difference.layout)
    got = deltas(difference.changes)
    assert got.keys() == expected.keys() and expected
    for name, values in expected.items():
        torch.testing.assert_close(got[name], values, atol=2e-6, rtol=1e-5)
