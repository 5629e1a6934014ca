"""Which added model embeds texts for the heads of a configuration."""

from __future__ import annotations

from collections.abc import Iterable

from classifiers.text.encoder.model import TextEncoder
from guard.artifact import Artifact
from guard.errors import ModelError
from guard.models.sources import resolve_source

TEXT_ENCODERS = ("minilm", "e5-small")


def encoder_for(artifacts: Iterable[Artifact]) -> str:
    """The encoder on which the first of the heads was fitted. Heads share one pass, so that a
    configuration has one encoder; heads on another one do not fit it."""
    names = (artifact.meta.model.name for artifact in artifacts)
    return next((name for name in names if name in TEXT_ENCODERS), TEXT_ENCODERS[0])


def added_encoder(name: str) -> TextEncoder:
    """The encoder of that name. Raises ModelError where it has not been added, or was altered."""
    try:
        return TextEncoder.load(resolve_source(name))
    except ValueError as error:
        raise ModelError(str(error)) from error
