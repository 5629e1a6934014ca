"""Rows of a data set as it was released: JSON Lines, JSON or Parquet, one file or several parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guard.errors import DataError

MAX_JSON_BYTES = 64 * 2**20
MAX_PARQUET_BYTES = 4 * 2**30
"""Of one part, images included."""

Row = Mapping[str, Any]

_ENDINGS = (".jsonl", ".json", ".parquet")


def find_parts(folder: Path, *names: str) -> list[Path]:
    """The files of the first of these sets that is there, in order; none where no set is.

    A set NAME is `NAME.jsonl`, `NAME.json` or `NAME.parquet`, files `NAME-*.parquet` (parts), or
    the Parquet files of a folder NAME; each also below `data/`.
    """
    for name in names:
        for place in (folder, folder / "data"):
            for ending in _ENDINGS:
                if (file := place / f"{name}{ending}").is_file():
                    return [file]
            if parts := sorted(
                [*place.glob(f"{name}-*.parquet"), *place.glob(f"{name}/*.parquet")]
            ):
                return parts
    return []


def read_parts(parts: Sequence[Path]) -> list[Row]:
    """The rows of all parts, in order. Raises DataError naming the file and what is wrong."""
    return [row for part in parts for row in read_part(part)]


def read_part(path: Path) -> list[Row]:
    """The rows of one file. Raises DataError."""
    parquet = path.suffix == ".parquet"
    most = MAX_PARQUET_BYTES if parquet else MAX_JSON_BYTES
    try:
        if path.stat().st_size > most:
            raise DataError(f"{path}: is larger than {most // 2**20} MiB")
        rows = _parquet(path) if parquet else _json(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not rows:
        raise DataError(f"{path}: holds no rows")
    return rows


def _json(path: Path) -> list[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    if path.suffix == ".json":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: is no JSON: {error}") from error
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise DataError(f"{path}: is no list of JSON objects")
        return value
    rows: list[Row] = []
    # not splitlines: JSON strings may hold other line separators as they are
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number}: no JSON object: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: no JSON object")
        rows.append(row)
    return rows


def _parquet(path: Path) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path}: is a Parquet file, which pyarrow reads: pip install "
            "'inference-guard[benchmarks]'"
        ) from error
    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: is no Parquet file: {str(error).splitlines()[0]}") from error
    return rows
