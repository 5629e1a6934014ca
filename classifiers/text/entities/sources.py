"""What a model of entities is, and what is missing to load it: told without loading anything."""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from classifiers.text.entities.recognizer import EntityRecognizer

_PACKAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA: Final = "pip install 'inference-guard[ner]'"
_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")


def is_folder(model: str) -> bool:
    """Whether a model is named by a folder, and not by an installed package."""
    return "/" in model or model.startswith(".")


def fault_of(model: str) -> str | None:
    """Why a model, a folder or the name of a package, cannot be loaded here; None where nothing is
    known to be missing."""
    if find_spec("presidio_analyzer") is None:
        return f"needs presidio-analyzer: {_EXTRA}"
    if not is_folder(model):
        return _fault_of_package(model)
    folder = Path(model)
    if (folder / "config.cfg").is_file():
        return None
    if not (folder / "config.json").is_file():
        return (
            f"no model is in {model}: a pipeline of spaCy has a config.cfg there, a model of "
            "transformers a config.json"
        )
    if not any((folder / name).is_file() for name in _WEIGHTS):
        return f"{model} has no weights in safetensors: save the model again in that form"
    for library in ("torch", "transformers"):
        if find_spec(library) is None:
            return f"a model of transformers needs {library}: pip install {library}"
    return None


def load_entities(model: str, entities: Collection[str], language: str | None) -> EntityRecognizer:
    """The recogniser of `entities`, by Presidio's names, on a model without a fault.

    Raises ImportError where a library is missing, and ValueError where the model cannot be loaded,
    is for another language, or does not find one of the entities.
    """
    if is_folder(model) and not (Path(model) / "config.cfg").is_file():
        from classifiers.text.entities.token_classifier import load_token_classifier

        return load_token_classifier(Path(model), entities, language)
    from classifiers.text.entities.spacy_pipeline import load_spacy_pipeline

    return load_spacy_pipeline(model, entities, language)


def _fault_of_package(name: str) -> str | None:
    if _PACKAGE.fullmatch(name) is None:
        return f"{name!r} is no name of a package: a folder is named with a slash (./models/names)"
    try:
        distribution(name)
    except PackageNotFoundError:
        return (
            f"no package {name} is installed: install it (python -m spacy download {name}), or "
            "name a folder (./models/names)"
        )
    return None
