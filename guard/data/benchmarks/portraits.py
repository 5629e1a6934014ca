"""Where the image of a row stands, and its pixels: a file, bytes inside the row, a tile of a sheet.

A sheet is one image with a grid of square tiles, whose side and number of columns `sheets.json`
beside it gives: `{"sheet.webp": {"tile": 96, "columns": 24}}`. `sheet.webp#25` is then the second
tile of the second row.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import DataError

Pixels = NDArray[np.uint8]
"""`[height, width, 3]`."""

MAX_FILE_BYTES = 64 * 2**20
SHEETS = "sheets.json"


@dataclass(frozen=True)
class Portrait:
    """An image of a data set, decoded when it is asked for.

    `where` names it in messages; `file` is a path, or the bytes of an image file; `tile` its place
    in a sheet.
    """

    where: str
    file: Path | bytes = field(repr=False)
    tile: int | None = None

    def pixels(self) -> Pixels:
        """The pixels. Raises DataError naming the image."""
        if isinstance(self.file, bytes):
            return _decoded(self.file, self.where)
        if self.tile is None:
            return _decoded(_bytes(self.file), self.where)
        return _tiles(self.file)[self.tile]

    @cached_property
    def digest(self) -> str:
        """What tells this image from others: the SHA-256 of its pixels."""
        pixels = self.pixels()
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def portrait_of(value: Any, folder: Path, where: str) -> Portrait | None:
    """The image that a row's field `value` means: a path below `folder`, with `#TILE` behind it for
    a tile, or `{"bytes": ..., "path": ...}` as Parquet files have it; None for no image.

    Raises DataError for anything else, for a path that leaves the folder and a missing tile.
    """
    if value is None:
        return None
    if isinstance(value, bytes):
        return Portrait(where, value)
    if isinstance(value, Mapping):
        if value.get("bytes"):
            return Portrait(where, bytes(value["bytes"]))
        value = value.get("path")
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: its image is neither a path nor bytes")
    name, _, number = value.partition("#")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{where}: the image {name!r} is outside of {folder}")
    if not path.is_file():
        raise DataError(f"{where}: there is no image {path}")
    if not number:
        return Portrait(where, path)
    count = len(_tiles(path))
    if not number.isdecimal() or int(number) >= count:
        raise DataError(f"{where}: there is no tile {number!r} in {path}, which has {count}")
    return Portrait(where, path, int(number))


@lru_cache(maxsize=32)
def _tiles(sheet: Path) -> list[Pixels]:
    """The tiles of a sheet, row by row."""
    description = sheet.with_name(SHEETS)
    try:
        entry = json.loads(description.read_text("utf-8"))[sheet.name]
        side, columns = int(entry["tile"]), int(entry["columns"])
    except OSError as error:
        raise DataError(f"{description}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{description}: does not give tile and columns of {sheet.name}") from error
    pixels = _decoded(_bytes(sheet), str(sheet))
    height, width = pixels.shape[:2]
    if side < 1 or columns < 1 or width != side * columns or height % side:
        raise DataError(
            f"{sheet}: {width} x {height} pixels are no grid of {columns} columns of {side} pixels"
        )
    return [
        np.ascontiguousarray(pixels[top : top + side, left : left + side])
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: is larger than {MAX_FILE_BYTES // 2**20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _decoded(file: bytes, where: str) -> Pixels:
    # imported here since only some extras have Pillow
    from PIL import Image

    from guard.data.image_files import UnusableImage, decode_image

    try:
        with Image.open(io.BytesIO(file), formats=("PNG", "JPEG", "WEBP")) as header:
            width, height = header.size
        return decode_image(file, width=width, height=height)
    except (UnusableImage, OSError, ValueError) as error:
        raise DataError(f"{where}: its image cannot be used: {error}") from error
