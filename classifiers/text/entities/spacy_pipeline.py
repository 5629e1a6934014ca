"""Entities by a pipeline of spaCy's, read as Presidio's engine and recogniser read it."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

import spacy
from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
from presidio_analyzer.predefined_recognizers import SpacyRecognizer

from classifiers.text.entities.recognizer import EntityRecognizer, one_line, require_known

_SIGNS: Final = re.compile(r"(?:[^\w\s]|_){32,}")
"""Signs in a row, which are no part of a name: spaCy takes them off one by one, and looks at all
that is left each time."""


def load_spacy_pipeline(
    model: str, entities: Collection[str], language: str | None
) -> EntityRecognizer:
    """The recogniser on an installed pipeline, or on one in a folder; nothing is downloaded.

    Raises ValueError where the pipeline cannot be loaded, is for another language, or does not
    find one of the entities.
    """
    try:
        pipeline = spacy.load(model)
    except Exception as error:  # the factories of its components raise anything
        raise ValueError(f"spaCy cannot load it: {one_line(error)}") from error
    if language is not None and pipeline.lang not in (language, "xx"):
        raise ValueError(f"the pipeline is for {pipeline.lang!r}, not for {language!r}")
    names = NerModelConfiguration().model_to_presidio_entity_mapping
    named = {label: names.get(label, label) for label in _labels(pipeline)}
    require_known(entities, set(named.values()))
    # Presidio warns of each entity with a label that it neither maps nor ignores
    ignored = [label for label, name in named.items() if name not in entities]
    engine = SpacyNlpEngine(
        [{"lang_code": pipeline.lang, "model_name": model}],
        ner_model_configuration=NerModelConfiguration(labels_to_ignore=ignored),
    )
    # its `load` would download what is not there, and would move all of spaCy to a GPU
    engine.nlp = {pipeline.lang: pipeline}
    recognizer = SpacyRecognizer(pipeline.lang, supported_entities=sorted(entities))

    def analyze(text: str) -> list[Any]:
        # outside of a zone the vocabulary grows with every word that was ever read
        with pipeline.memory_zone():
            read = _SIGNS.sub(lambda signs: " " * len(signs[0]), text)
            artifacts = engine.process_text(read, pipeline.lang)
            found: list[Any] = recognizer.analyze(text, sorted(entities), artifacts)
            return found

    return EntityRecognizer(analyze, entities)


def _labels(pipeline: Any) -> set[str]:
    """The labels of the components that name entities."""
    return {
        label
        for name, labels in pipeline.pipe_labels.items()
        if "doc.ents" in pipeline.get_pipe_meta(name).assigns
        for label in labels
    }
