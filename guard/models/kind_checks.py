"""What kind of model a source is, from its files alone, so that a wrong one is refused at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.config.kinds import Kind
from guard.errors import ModelError
from guard.models.sources import GGUF, resolve_source

_NAMES: Mapping[Kind, str] = {
    "language": "a language model",
    "images": "an image model",
    "text": "a sentence encoder",
    "pixels": "an image encoder",
}
_FITS: Mapping[Kind, str] = {
    "language": '`guard fit steer --model {0}` and `guard new "NAME" --model {0}` make its guards',
    "images": "`guard fit cgce --model {0}` and other methods of images make its guards",
    "text": "`guard fit screen --model {0}` makes screens of texts with it",
    "pixels": "`guard fit image-screen --model {0}` makes screens of images with it",
}
_ENCODERS = frozenset(
    {"albert", "bert", "deberta", "deberta-v2", "distilbert", "mpnet", "roberta", "xlm-roberta"}
)
"""Values of `model_type` whose models read and do not answer, unless their class says so."""


def source_of(source: str, kind: Kind) -> str:
    """`resolve_source`, for a model of a kind. Raises ModelError for one of another kind, naming
    the commands that it is for; what the files do not tell is left to the loader."""
    resolved = resolve_source(source)
    found = kind_of_files(Path(resolved))
    if found not in {kind, None}:
        assert found is not None
        raise ModelError(
            f"model {source!r} is {_NAMES[found]}, and what is needed here is {_NAMES[kind]}: "
            f"{_FITS[found].format(source)}"
        )
    return resolved


def kind_of_model(source: str) -> Kind:
    """The kind of a model. One that cannot be found, or is of no known kind, counts as a language
    model, whose loading says what is wrong."""
    try:
        folder = Path(resolve_source(source))
    except ModelError:
        return "language"
    if folder.exists():
        return kind_of_files(folder) or "language"
    return "images" if _is_on_hub(str(folder), "model_index.json") else "language"


def _is_on_hub(repository: str, name: str) -> bool:
    """Whether a repository of the hub, or its copy in the cache, has a file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        hf_hub_download(repository, name)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        return False
    return True


def kind_of_files(folder: Path) -> Kind | None:
    """The kind of the model in a folder or a GGUF file; None for one of no known kind, and for a
    hub name."""
    if folder.suffix == GGUF:
        return "language"
    if (folder / "model_index.json").is_file():
        return "images"
    if (folder / "encoder.onnx").is_file():
        return "text"
    if (folder / "image_encoder.onnx").is_file():
        return "pixels"
    try:
        config: Any = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or not isinstance(model_type := config.get("model_type"), str):
        return None
    classes = [str(each) for each in config.get("architectures") or ()]
    if model_type in _ENCODERS and not any(
        "CausalLM" in each or "LMHead" in each for each in classes
    ):
        return "text"
    return "language"
