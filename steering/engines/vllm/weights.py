"""The weights that vLLM serves: those of a checkpoint, or what it has made of them at load."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steering.fingerprint import checkpoint_fingerprint, quantised_fingerprint
from steering.quantisation import Quantisation, of_checkpoint

_FILE = "quantization_config_file"


def checkpoint(model: Any) -> Path:
    """The folder of the checkpoint of a vLLM `ModelConfig`. Raises OSError and ValueError."""
    folder = Path(model.model)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    # vLLM has downloaded it by now
    return Path(snapshot_download(model.model, revision=model.revision, local_files_only=True))


def served_fingerprint(model: Any, folder: Path | None = None) -> str:
    """The fingerprint of the weights that vLLM serves by a `ModelConfig`, from the checkpoint in
    `folder`; that of `steering.fingerprint` where vLLM takes them as they are.

    Raises OSError and ValueError for a checkpoint that cannot be read.
    """
    folder = folder or checkpoint(model)
    weights = checkpoint_fingerprint(folder)
    at_load = _at_load(model, folder)
    return weights if at_load is None else quantised_fingerprint(weights, at_load)


def served_quantisation(model: Any) -> Quantisation | None:
    """How the weights that vLLM serves are quantised. Raises as `served_fingerprint`."""
    folder = checkpoint(model)
    return _at_load(model, folder) or of_checkpoint(folder)


def _at_load(model: Any, folder: Path) -> Quantisation | None:
    """The quantisation by vLLM's own settings, where they are not only those of the checkpoint."""
    method = getattr(model, "quantization", None)
    settings: dict[str, Any] = {}
    # filled in from a shorthand such as --quantization fp8_per_tensor, or given
    if (online := getattr(model, "quantization_config", None)) is not None:
        settings["quantization_config"] = online if isinstance(online, dict) else repr(online)
    overrides = getattr(model, "hf_overrides", None)
    if isinstance(overrides, Mapping):
        settings |= {key: value for key, value in overrides.items() if key.startswith("quantiz")}
    if _FILE in settings:
        settings[_FILE] = hashlib.sha256(Path(str(settings[_FILE])).read_bytes()).hexdigest()
    if not settings and (not method or of_checkpoint(folder) is not None):
        return None
    return Quantisation(str(method), settings, "vLLM")
