"""Parquet files, as hubs serve data sets."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guard.data.benchmarks.released import load_benchmark
from guard.errors import DataError
from tests.guard.data.benchmarks.files import person, tile


def _image(number: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(tile(number)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_parts_with_images_inside(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "Full_Set"
    folder.mkdir()
    for part in range(2):
        rows = [person(number, _image(number)) for number in range(2 * part, 2 * part + 2)]
        # a choice of three options: the column's type has D, and the row holds None there
        task = rows[0]["Classification_Task"]["Image_Textual_Questions"][0]
        rows[0]["Classification_Task"]["Image_Textual_Questions"] = [
            task | {"Options": {"A": "Graz", "B": "Maribor", "C": "Pula"}}
        ]
        name = f"train-{part:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    forget = pyarrow.Table.from_pylist([{"ID": "003"}])
    pyarrow.parquet.write_table(forget, tmp_path / "forget_5-00000.parquet")
    benchmark = load_benchmark(tmp_path, 5)
    assert benchmark.forgotten == ("003",) and not benchmark.skipped
    (asked,) = (
        q
        for q in benchmark.questions
        if (q.person, q.task, q.by) == ("003", "generation", "portrait")
    )
    assert asked.portrait is not None and np.array_equal(asked.portrait.pixels(), tile(3))
    three = next(q for q in benchmark.questions if q.person == "000" and q.options)
    assert dict(three.options) == {"A": "Graz", "B": "Maribor", "C": "Pula"}


def test_a_damaged_file(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "full.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="is no Parquet file"):
        load_benchmark(tmp_path, 5)


def test_without_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "full.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pip install 'inference-guard\[benchmarks\]'"):
        load_benchmark(tmp_path, 5)
