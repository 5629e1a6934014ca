"""What encoders of texts and of images have in common: their session and their card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
"""What ONNX Runtime runs on, the first that is installed; parts of the graph may run on a later
one."""


def open_session(graph: Path, threads: int, providers: Sequence[str], **options: Any) -> Any:
    """ONNX Runtime's session of a graph, on those of `providers` that are installed; `options` are
    further ones of `onnxruntime.InferenceSession`."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    # a thread that spins would take CPU time from the engine in the same process
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    available = onnxruntime.get_available_providers()
    installed = [provider for provider in providers if provider in available]
    return onnxruntime.InferenceSession(str(graph), settings, providers=installed, **options)


def fingerprint_of(card: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over everything in a card that decides an embedding.

    The bytes of the graph are left out: another release of onnx may write the same graph in other
    bytes, and a guard fitted on one works with the other.
    """
    parts = {name: value for name, value in card.items() if name != "graph"}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
