"""Tensors of rows, learned words and noise, in a safetensors file beside the file of the rows.

The tensors of `attack.jsonl` are in `attack.safetensors`. A tensor's name is the hash of its
content, so that the same name always means the same tensor, in any file.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from guard.data.prompts import ImagePrompt
from guard.errors import DataError

MAX_BYTES = 512 * 2**20
_ABOUT = "about"

Tensors = Mapping[str, NDArray[np.float32]]


class RowTensors(NamedTuple):
    """The names of a row's tensors, empty for none."""

    word: str = ""
    noise: str = ""

    @classmethod
    def of(cls, row: ImagePrompt) -> RowTensors:
        return cls(row.word, row.noise)


def name_of(tensor: NDArray[np.float32]) -> str:
    """The name of a tensor: a hash of its shape and values."""
    shape = json.dumps(tensor.shape).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(tensor, "<f4").tobytes()).hexdigest()[:32]


def write(path: Path, tensors: Sequence[NDArray[np.float32]], about: str) -> tuple[str, ...]:
    """Write a file atomically; returns the names. `about` says what the tensors were made from.

    Raises DataError if it cannot be written.
    """
    named = {name_of(tensor): np.ascontiguousarray(tensor, np.float32) for tensor in tensors}
    order = tuple(name_of(tensor) for tensor in tensors)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(save(named, {_ABOUT: about, "order": json.dumps(order)}))
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    return order


def read(path: Path) -> tuple[Tensors, tuple[str, ...], str]:
    """The tensors of a file by name, their order, and what they were made from.

    Raises DataError for a file of another kind, or for tensors that do not match their names.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: is larger than {MAX_BYTES // 2**20} MiB")
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
        order = tuple(map(str, json.loads(about.get("order", "[]"))))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise DataError(f"{path}: is no file of tensors: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32 or name != name_of(tensor):
            raise DataError(f"{path}: tensor {name} does not match its name: make the file again")
    return tensors, order, str(about.get(_ABOUT, ""))


def beside(paths: Iterable[Path], rows: Iterable[ImagePrompt]) -> dict[str, NDArray[np.float32]]:
    """The tensors beside files of rows. Raises DataError if one that `rows` name is missing."""
    tensors: dict[str, NDArray[np.float32]] = {}
    for path in paths:
        if (file := path.with_suffix(".safetensors")).exists():
            tensors |= read(file)[0]
    needed = {name for row in rows for name in RowTensors.of(row) if name}
    if missing := sorted(needed - set(tensors)):
        raise DataError(f"no file beside the prompts has the tensor {missing[0]}")
    return tensors
