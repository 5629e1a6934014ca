"""Copies of a language model with other weights, for `guard rebind`: quantised ones and noisy ones.

    python -m benchmarks.model_copies MODEL FOLDER int8 int4 noise-0.1

Quantised copies are checkpoints in the format of compressed-tensors, rounded to the nearest value
without data: `int8` has integers of 8 bits with a scale for each row, and quantises
activations by the token (W8A8); `int4` has integers of 4 bits with a scale for each 64 columns
(W4A16). `noise-SIZE` adds to each matrix normal noise of SIZE times its standard deviation.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from guard.models.sources import resolve_source

GROUP = 64
_CLIPS = torch.tensor([1.0, 0.95, 0.9, 0.85, 0.8])[:, None, None, None]
_SYMMETRIC = {"type": "int", "symmetric": True}
_INT8 = {"num_bits": 8, **_SYMMETRIC}
SCHEMES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "int8": (
        "int-quantized",
        {
            "weights": _INT8 | {"strategy": "channel", "dynamic": False},
            "input_activations": _INT8 | {"strategy": "token", "dynamic": True},
        },
    ),
    "int4": (
        "pack-quantized",
        {
            "weights": {"num_bits": 4, **_SYMMETRIC}
            | {"strategy": "group", "group_size": GROUP, "dynamic": False}
        },
    ),
}
"""Name → format and settings of the group of all linear layers but the head."""


def to_int8(weight: Tensor) -> dict[str, Tensor]:
    """`weight [rows, columns]` as integers, with `weight_scale [rows, 1]`."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}


def to_int4(weight: Tensor) -> dict[str, Tensor]:
    """`weight [rows, columns]` as words of eight integers, the first in the lowest bits, with
    `weight_scale [rows, columns / GROUP]` and the shape."""
    rows, columns = weight.shape
    grouped = weight.view(rows, columns // GROUP, GROUP)
    # of a few scales the one with the smallest error: the largest value may be cut off
    scales = grouped.abs().amax(-1, keepdim=True) / 7 * _CLIPS
    rounded = (grouped / scales).round().clamp(-8, 7)
    best = (rounded * scales - grouped).square().sum(-1, keepdim=True).argmin(0, keepdim=True)
    scale = scales.gather(0, best)[0]
    integers = (grouped / scale).round().clamp(-8, 7).view(rows, columns // 8, 8).long() + 8
    words = (integers << torch.arange(0, 32, 4)).sum(-1)
    return {
        # the upper half of 32 bits without a sign is negative with one
        "weight_packed": torch.where(words >= 2**31, words - 2**32, words).int(),
        "weight_scale": scale.squeeze(-1).bfloat16(),
        "weight_shape": torch.tensor([rows, columns]),
    }


def write_copy(source: Path, target: Path, kind: str) -> None:
    """Write one copy. Raises ValueError for an unknown kind."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, target / path.name)
    weights: dict[str, Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        weights |= load_file(path)
    size = float(kind.removeprefix("noise-")) if kind.startswith("noise-") else None
    if size is None and kind not in SCHEMES:
        raise ValueError(f"unknown kind {kind!r}: {', '.join(SCHEMES)} or noise-SIZE")
    convert = to_int8 if kind == "int8" else to_int4
    generator = torch.Generator().manual_seed(1)
    copied: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if ".layers." not in name or weight.ndim != 2:
            copied[name] = weight if size is not None else weight.bfloat16()
        elif size is not None:
            noise = torch.randn(weight.shape, generator=generator)
            copied[name] = weight + size * weight.float().std() * noise
        else:
            parts = convert(weight.float()).items()
            base = name.removesuffix("weight")
            copied |= {base + part: values.contiguous() for part, values in parts}
    save_file(copied, target / "model.safetensors", {"format": "pt"})
    if size is None:
        _describe(target / "config.json", *SCHEMES[kind])


def _describe(path: Path, form: str, group: Mapping[str, Any]) -> None:
    about = json.loads(path.read_text("utf-8"))
    about["dtype"] = "bfloat16"
    about["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], **group}},
        "ignore": ["lm_head"],
    }
    path.write_text(json.dumps(about, indent=1), "utf-8")


def main() -> None:
    """Write the copies that the command line names."""
    if len(sys.argv) < 4:
        raise SystemExit(str(__doc__))
    source, folder, *kinds = sys.argv[1:]
    for kind in kinds:
        write_copy(Path(resolve_source(source)), Path(folder) / kind, kind)


if __name__ == "__main__":
    main()
