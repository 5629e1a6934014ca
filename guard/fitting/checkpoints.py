"""Finished parts of a long computation, kept until it has ended: one that was killed goes on."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OF, _VALUE = "of", "value"


class Checkpoints:
    """The parts of what becomes the file `target`, in a folder beside it, a file for each.

    They are `of` a model, its data and a recipe, in words: parts of something else are computed
    anew, with a line in the log. With no target nothing is kept. A part is the same, bit for bit,
    whether it was computed just now or read.
    """

    def __init__(self, target: Path | None, of: str = "") -> None:
        self._folder = None if target is None else target.with_suffix(".parts")
        self._of = of
        self._ignored = False

    def __contains__(self, part: str) -> bool:
        return self._read(part, lambda _: True) is True

    @property
    def count(self) -> int:
        """How many parts are there."""
        if self._folder is None:
            return 0
        return sum(path.stem in self for path in self._folder.glob("*.safetensors"))

    def tensors(self, part: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a part, computed where it is not there."""
        found = self.found(part)
        if found is None:
            found = {name: tensor.contiguous() for name, tensor in compute().items()}
            self.keep(part, found)
        return found

    def found(self, part: str) -> dict[str, Tensor] | None:
        """The tensors of a part, None where it is not there."""
        return self._read(part, _tensors)

    def keep(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of a part, over those that it had."""
        self._write(part, tensors, None)

    def value(self, part: str, compute: Callable[[], list[Any] | dict[str, Any]]) -> Any:
        """The same for values of JSON."""
        found = self._read(part, _value)
        if found is None:
            found = json.loads(json.dumps(compute()))
            self._write(part, {}, found)
        return found

    def drop(self, part: str) -> None:
        """Remove a part that a later one has replaced."""
        if self._folder is not None:
            (self._folder / f"{part}.safetensors").unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all parts: the file is there."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, part: str, content: Callable[[Any], T]) -> T | None:
        """The content of a part's file, None where there is none of the same model and data."""
        if self._folder is None:
            return None
        try:
            with safe_open(self._folder / f"{part}.safetensors", "pt") as file:
                if (file.metadata() or {}).get(_OF) == self._of:
                    return content(file)
            self._ignore("is of another model, precision, device, data, settings or program")
        except FileNotFoundError:
            pass
        except (OSError, SafetensorError, KeyError, ValueError):
            self._ignore("cannot be read")
        return None

    def _ignore(self, reason: str) -> None:
        if not self._ignored:
            logger.warning("%s: %s: it is computed anew", self._folder, reason)
        self._ignored = True

    def _write(self, part: str, tensors: Mapping[str, Tensor], value: Any) -> None:
        if self._folder is None:
            return
        path = self._folder / f"{part}.safetensors"
        try:
            save_whole(path, tensors, {_OF: self._of, _VALUE: json.dumps(value)})
        except (OSError, SafetensorError) as error:
            # the computation goes on: it is the next one that would have to begin anew
            logger.warning("%s: cannot be kept: %s", path, error)


def _tensors(file: Any) -> dict[str, Tensor]:
    # copies: kernels may round otherwise for tensors of a mapped file, which are not aligned
    return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def _value(file: Any) -> Any:
    return json.loads(file.metadata()[_VALUE])


def save_whole(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, all of it or nothing, whoever else writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, unfinished, metadata)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
