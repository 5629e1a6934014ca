"""Entities by a model of transformers that classifies tokens, as Presidio's recogniser reads it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from presidio_analyzer.predefined_recognizers import HuggingFaceNerRecognizer
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline
from transformers.utils import logging as transformers_logging

from classifiers.text.entities.chunks import SIZE
from classifiers.text.entities.recognizer import EntityRecognizer, one_line, require_known

_STRIDE: Final = 32
"""Tokens that two windows of the model have in common."""
_POSITIONS: Final = 512
"""The tokens of a window, where a model does not say how many it reads."""
_FIRST_POSITION: Final = 2
"""The position that RoBERTa and its kin give the first token, so that they read fewer."""
_PREFIXES: Final = ("B-", "I-", "L-", "U-")
"""Of the labels of single tokens: where in an entity they stand."""


def load_token_classifier(
    folder: Path, entities: Collection[str], language: str | None
) -> EntityRecognizer:
    """The recogniser on a model in a folder, on the CPU; nothing is downloaded.

    Raises ValueError where the model cannot be loaded or does not find one of the entities.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        network = AutoModelForTokenClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # configurations and weights of others
        raise ValueError(f"transformers cannot load it: {one_line(error)}") from error
    if not tokenizer.is_fast:
        raise ValueError("it has no fast tokenizer (tokenizer.json), which tells where words stand")
    require_known(entities, _names(network.config.id2label.values()))
    windows = _Windows(network, tokenizer)
    recognizer = _Loaded(windows, entities, language or "en")

    def analyze(text: str) -> list[Any]:
        found: list[Any] = recognizer.analyze(text, sorted(entities))
        windows.require_sound()
        return found

    return EntityRecognizer(analyze, entities)


def _names(labels: Collection[str]) -> set[str]:
    """Presidio's names for a model's labels."""
    known = HuggingFaceNerRecognizer.DEFAULT_LABEL_MAPPING
    bare = {label[2:] if label.startswith(_PREFIXES) else label for label in labels}
    return {known.get(label, label) for label in bare - {"O"}}


class _Windows:
    """A pipeline that reads all of a text, in windows, and whose failures are kept: Presidio's
    recogniser takes one for a text without entities."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        positions = getattr(network.config, "max_position_embeddings", None) or _POSITIONS
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions - _FIRST_POSITION)
        self._pipeline = pipeline(
            "token-classification",
            model=network,
            tokenizer=tokenizer,
            aggregation_strategy="first",  # words are found as a whole
            stride=min(_STRIDE, tokenizer.model_max_length // 4),
            device=-1,
        )
        self._failure: Exception | None = None

    def __call__(self, text: str) -> Any:
        try:
            return self._pipeline(text)
        except Exception as error:
            self._failure = error
            raise

    def require_sound(self) -> None:
        """Raise what the pipeline has raised."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


class _Loaded(HuggingFaceNerRecognizer):  # type: ignore[misc]
    """Presidio's recogniser on a model that is loaded already."""

    def __init__(self, windows: _Windows, entities: Collection[str], language: str) -> None:
        self._windows = windows
        super().__init__(
            supported_entities=sorted(entities),
            supported_language=language,
            device="cpu",
            chunk_size=2 * SIZE,  # texts come in chunks already
        )

    def load(self) -> None:
        """Take the model."""
        self.ner_pipeline = self._windows
