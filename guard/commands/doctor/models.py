"""Whether models fit the memory: their weights, counted in the files' headers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from guard.commands.doctor.finding import Finding
from guard.commands.doctor.machine import GIB, device_bytes, memory_bytes
from guard.config.schema import ModelConfig
from guard.errors import ModelError
from guard.models.sources import added_models, resolve_source

ROOM = 1.3
"""Of the weights: what a process takes beside them, caches of a few rows among it."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PACKED = {"int8": 1.0, "nf4": 0.5}
_STORED = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
_HEADER_BYTES = 100 * 2**20


def added_findings() -> Iterator[Finding]:
    """A finding for each added model, as its files are."""
    models = added_models()
    for model in models:
        yield _fits(f"model {model.name}", model.path, None, None)
    if not models:
        remedy = "`guard models list` shows what there is, `guard models add NAME` gets one"
        yield Finding("models", "note", "none is added", remedy)


def served_findings(models: Sequence[ModelConfig]) -> Iterator[Finding]:
    """A finding for each model of a configuration, in the dtype that it is served in."""
    for model in models:
        subject = f"model {model.name}"
        try:
            source = Path(resolve_source(model.source))
        except ModelError as error:
            yield Finding(subject, "missing", f"source {model.source!r} is not here", error.message)
            continue
        if not source.exists():
            remedy = "it is fetched from the hub at the start: allow that, or fetch it beforehand"
            yield Finding(subject, "note", f"{model.source} is a hub name", remedy)
            continue
        yield _fits(subject, source, model.dtype, model.quantization)


def weights_bytes(source: Path, dtype: str | None, quantization: str | None) -> int:
    """Bytes of the weights of a folder or a file in `dtype`; as stored with None or "auto"."""
    if source.is_file():  # packed: unpacked it is several times as large
        return source.stat().st_size
    total = sum(float(file.stat().st_size) for file in source.rglob("*.onnx"))
    for file in source.rglob("*.safetensors"):
        for stored, count in _tensors(file):
            served = _BYTES.get(dtype or "", _STORED.get(stored, 4))
            total += count * _PACKED.get(quantization or "", served)
    return int(total)


def _tensors(file: Path) -> Iterator[tuple[str, int]]:
    """Dtype and number of values of each tensor; nothing of a damaged file."""
    with file.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
        try:
            header = json.loads(content.read(size)) if size <= _HEADER_BYTES else {}
            for name, entry in header.items():
                if name != "__metadata__":
                    yield str(entry["dtype"]), math.prod(entry["shape"])
        except (ValueError, TypeError, KeyError, AttributeError):
            return


def _fits(subject: str, source: Path, dtype: str | None, quantization: str | None) -> Finding:
    size = weights_bytes(source, dtype, quantization)
    places = device_bytes() or [("memory", memory_bytes())]
    where, room = max(places, key=lambda place: place[1])
    how = quantization or dtype
    found = f"{size / GIB:.2f} GiB of weights" + (f" in {how}" if how not in {None, "auto"} else "")
    if size * ROOM > room:
        remedy = 'dtype = "bfloat16", quantization = "int8" or "nf4", or a machine with more memory'
        return Finding(subject, "missing", f"{found}: too much for {room / GIB:.1f} GiB", remedy)
    return Finding(subject, "ok", f"{found}, of {room / GIB:.1f} GiB {where}")
