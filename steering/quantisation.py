"""How the weights of a model are quantised: by its checkpoint, or when an engine loads it.

A checkpoint says so in its description. An engine may also quantise a checkpoint of plain weights
while it loads it: then what is served is not what the files hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_BYTES = 16 * 2**20
_KEYS = ("quantization_config", "compression_config")
_BESIDE = "hf_quant_config.json"
"""Where ModelOpt writes the settings, beside `config.json`."""


@dataclass(frozen=True)
class Quantisation:
    """A method of quantisation and its settings, JSON-ready; `engine` has applied it at load, and
    is empty where the checkpoint holds the quantised weights."""

    method: str
    settings: Mapping[str, Any]
    engine: str = ""

    def __str__(self) -> str:
        return f"{self.method} when {self.engine} loads it" if self.engine else self.method


def of_checkpoint(folder: Path) -> Quantisation | None:
    """The quantisation of the weights in a checkpoint's files; None for plain ones.

    Raises OSError and ValueError for a folder whose description cannot be read.
    """
    about = _read(folder / "config.json")
    parts = [about, about.get("text_config")]
    settings = next(
        (part[key] for part in parts if isinstance(part, dict) for key in _KEYS if part.get(key)),
        None,
    )
    if settings is None and (folder / _BESIDE).is_file():
        settings = _read(folder / _BESIDE).get("quantization")
    if not isinstance(settings, dict) or not settings:
        return None
    method = settings.get("quant_method") or settings.get("quant_algo")
    if not method and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"
    return Quantisation(str(method or "an unnamed method"), settings)


def of_loaded(model: Any) -> Quantisation | None:
    """The quantisation that transformers has applied to a model's weights, or has read them in;
    None for plain weights, and for weights that were unpacked."""
    quantiser = getattr(model, "hf_quantizer", None)
    settings = getattr(quantiser, "quantization_config", None)
    if settings is None:
        return None
    listed = settings.to_dict() if hasattr(settings, "to_dict") else dict(settings)
    method = getattr(settings, "quant_method", "an unnamed method")
    return Quantisation(
        str(getattr(method, "value", method)), json.loads(_spelled(listed)), "transformers"
    )


def spelled(quantisation: Quantisation) -> bytes:
    """The one spelling of a quantisation, for a digest."""
    fields = [quantisation.engine, quantisation.method, quantisation.settings]
    return _spelled(fields).encode()


def _spelled(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def _read(path: Path) -> dict[str, Any]:
    """Raises OSError and ValueError."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES} bytes: not a description of a model")
    try:
        about = json.loads(path.read_text("utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    if not isinstance(about, dict):
        raise ValueError(f"{path} holds no JSON object")
    return about
