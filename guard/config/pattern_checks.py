"""Checks of one of `[[patterns]]`: a list that can be read, a model of entities that is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from classifiers.text.entities.sources import fault_of, is_folder
from guard.config.toml_lines import KeyPath
from guard.errors import ArtifactError

ENTITIES: Final = "entities"
"""The source that is no list: names of people and places, which a model finds."""
_OF_ENTITIES: Final = ("model", "entities", "language")


def pattern_problems(
    index: int, entry: Mapping[str, Any], folder: Path
) -> Iterator[tuple[KeyPath, str]]:
    """The faults of one of `[[patterns]]`; files are in `folder`. Values of the wrong type are
    ignored."""
    source = entry.get("source")
    if not isinstance(source, str):
        return
    if source != ENTITIES:
        for key in _OF_ENTITIES:
            if key in entry:
                yield ("patterns", index, key), f'is for source = "{ENTITIES}": leave it out'
        if reason := _unreadable(source, folder):
            yield ("patterns", index, "source"), reason
        return
    if not entry.get("entities"):
        yield (
            ("patterns", index, "entities"),
            'is missing: say what is to be found, such as ["PERSON", "LOCATION"]',
        )
    model = entry.get("model")
    if not isinstance(model, str):
        yield (
            ("patterns", index, "model"),
            "is missing: name a pipeline of spaCy that is installed, or the folder of a model",
        )
    elif reason := fault_of(model_path(model, folder)):
        yield ("patterns", index, "model"), reason


def _unreadable(source: str, folder: Path) -> str | None:
    """Why the list of patterns `source`, a shipped name or a file in `folder`, cannot be used."""
    try:
        # imported here, since only screens of text need its libraries
        from guard.config.pattern_lists import read_patterns
    except ImportError as error:
        return f"needs {error.name}: pip install 'inference-guard[proxy]'"
    try:
        read_patterns(str(folder / source) if source.endswith(".toml") else source)
    except ArtifactError as error:
        return error.message
    return None


def model_path(model: str, folder: Path) -> str:
    """A model as it stands in a configuration in `folder`: a package, or the path of a folder."""
    return str(folder / model) if is_folder(model) else model
