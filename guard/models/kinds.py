"""The kind of a model, from its small files alone: nothing big is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from guard.errors import ModelError
from guard.models.sources import resolve_source

_GENERATES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


def kind_of_model(source: str) -> Literal["language", "images"]:
    """Whether `source` is a language model or an image pipeline.

    A source that cannot be found counts as a language model, whose loading says what is wrong.
    Raises ModelError for a model that is neither.
    """
    try:
        folder = Path(resolve_source(source))
    except ModelError:
        return "language"
    if not folder.is_dir():
        return "images" if _on_hub(str(folder), "model_index.json") else "language"
    if (folder / "model_index.json").is_file():
        return "images"
    if not _generates(folder / "config.json"):
        raise ModelError(
            f"model {source!r} is neither a language model nor an image pipeline: its config.json "
            "names no architecture that generates text, and there is no model_index.json"
        )
    return "language"


def _generates(config: Path) -> bool:
    try:
        described = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(described, dict):
        return False
    architectures = described.get("architectures") or ()
    if not architectures:
        return "model_type" in described
    return any(str(name).endswith(_GENERATES) for name in architectures)


def _on_hub(repository: str, name: str) -> bool:
    """Whether a repository of the hub, or its copy in the cache, has a file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        hf_hub_download(repository, name)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        return False
    return True
