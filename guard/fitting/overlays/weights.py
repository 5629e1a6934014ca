"""The tensors of safetensors files, by name. Pickles are never read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guard.errors import DataError

MAX_INDEX_BYTES = 16 * 2**20
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_PREFERRED = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
)
_DTYPES = {"F64", "F32", "F16", "BF16"}


class Weights:
    """The tensors of some safetensors files, opened and read one by one.

    `metadata` is what the files say of themselves. Raises DataError naming the file.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.metadata: dict[str, str] = {}
        self._files: dict[str, Any] = {}
        for path in self.paths:
            try:
                file: Any = safe_open(path, framework="pt")
                names = list(file.keys())
                self.metadata |= file.metadata() or {}
            except (OSError, SafetensorError) as error:
                raise DataError(f"{path}: is no safetensors file: {error}") from error
            for name in names:
                if name in self._files:
                    raise DataError(f"{path}: has {name!r:.120}, which another file has too")
                self._files[name] = file

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def is_floating(self, name: str) -> bool:
        """Whether the tensor has floats of 16 bits or more."""
        return self._files[name].get_slice(name).get_dtype() in _DTYPES

    def tensor(self, name: str) -> Tensor:
        """The tensor in its own dtype. Raises DataError for one that is not of floats of 16 bits or
        more, or holds NaN."""
        if not self.is_floating(name):
            dtype = self._files[name].get_slice(name).get_dtype()
            raise DataError(
                f"{self.label}: {name!r:.120} has dtype {dtype}: save the weights unquantised, as "
                "float16, bfloat16 or float32"
            )
        tensor: Tensor = self._files[name].get_tensor(name)
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{self.label}: {name!r:.120} holds NaN or infinite values")
        return tensor

    @property
    def label(self) -> str:
        """The files in messages: the only one, or the folder of several."""
        return str(self.paths[0] if len(self.paths) == 1 else self.paths[0].parent)


def weight_files(source: Path) -> list[Path]:
    """The safetensors files of one network: `source` itself, or those in that folder.

    Raises DataError where there are none (saying how a pickle is converted), or several that are
    not the shards of one network.
    """
    if source.is_file():
        if source.suffix in PICKLES:
            raise DataError(refusal_of_pickle(source))
        if source.suffix != ".safetensors":
            raise DataError(f"{source}: is no .safetensors file, and no folder of them")
        return [source]
    if not source.is_dir():
        raise DataError(f"{source}: does not exist: give a folder or a .safetensors file")
    indices = sorted(source.glob("*.safetensors.index.json"))
    if indices:
        return _shards(indices[0])
    files = sorted(source.glob("*.safetensors"))
    preferred = [file for file in files if file.name in _PREFERRED]
    if len(files) == 1 or len(preferred) == 1:
        return preferred or files
    if files:
        raise DataError(f"{source}: has {len(files)} .safetensors files: name one of them")
    pickles = sorted(path for path in source.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise DataError(refusal_of_pickle(pickles[0]))
    raise DataError(f"{source}: has no weights in .safetensors files")


def refusal_of_pickle(path: Path) -> str:
    """Why a pickle is not read, and how it is converted."""
    return (
        f"{path}: is a pickle, which may run code when it is read: convert it where you trust it, "
        'with python -c "import torch, safetensors.torch as s; s.save_file(torch.load('
        f"'{path.name}', weights_only=True), '{path.stem}.safetensors')\""
    )


def _shards(index: Path) -> list[Path]:
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise DataError(f"{index}: is larger than {MAX_INDEX_BYTES} bytes: not an index")
        content: Any = json.loads(index.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{index}: cannot be read as JSON") from error
    shards = content.get("weight_map") if isinstance(content, Mapping) else None
    names = list(shards.values()) if isinstance(shards, Mapping) else []
    if not names or not all(map(_is_shard, names)):
        raise DataError(f"{index}: has no weight_map with the files beside it")
    return [index.parent / name for name in sorted(set(names))]


def _is_shard(name: object) -> bool:
    """Whether this is the name of a file of weights, and no path that leads elsewhere."""
    if not isinstance(name, str) or not name.isprintable():
        return False
    return Path(name).name == name and name.endswith(".safetensors")
