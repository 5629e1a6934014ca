"""The recogniser of entities that one of `[[patterns]]` asks for."""

from __future__ import annotations

from classifiers.text.entities.recognizer import EntityRecognizer
from classifiers.text.entities.sources import fault_of, load_entities
from guard.config.schema import PatternsConfig
from guard.errors import ModelError


def load_recognizer(setting: PatternsConfig) -> EntityRecognizer:
    """The recogniser, with its model. Raises ModelError where that cannot be loaded, or does not
    find what it is to find."""
    assert setting.model is not None  # the configuration has been checked
    if fault := fault_of(setting.model):
        raise ModelError(fault)
    try:
        return load_entities(setting.model, setting.entities, setting.language)
    except ImportError as error:
        raise ModelError(
            f"a model of entities needs {error.name}: pip install 'inference-guard[ner]'"
        ) from error
    except ValueError as error:
        raise ModelError(f"{setting.model}: {error}") from error
