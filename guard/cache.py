"""The cache of models and artifacts."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: the environment variable GUARD_CACHE, else ~/.cache/inference-guard.

    It is not created here.
    """
    configured = os.environ.get("GUARD_CACHE")
    if configured:
        return Path(configured).expanduser().absolute()
    return Path.home() / ".cache" / "inference-guard"
