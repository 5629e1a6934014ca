"""Embeddings in image requests, for placeholders in the prompt: from base64 to vectors."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import InvalidParameter, UnsupportedParameter
from server.services.interface import ImageModelInfo
from steering.images.textual_inversion import EmbeddingError, check_names

Numbers = NDArray[np.float16]
Vectors = NDArray[np.float32]


def read_numbers(value: Any) -> Mapping[str, Numbers]:
    """The flat numbers of each name in `{"<name>": base64 of little-endian float16}`.

    Raises InvalidParameter.
    """
    if not isinstance(value, dict):
        raise invalid("give an object of placeholder tokens and the base64 of their vectors")
    try:
        check_names(value)
    except EmbeddingError as error:
        raise invalid(str(error)) from None
    return {name: _numbers(name, text) for name, text in value.items()}


def read_vectors(
    numbers: Mapping[str, Numbers], info: ImageModelInfo, *, prompt: str, negative_prompt: str
) -> Mapping[str, Vectors]:
    """The vectors `[vectors, width]` of each name, checked against the model and the prompt.

    Raises UnsupportedParameter for a model that takes none, and InvalidParameter.
    """
    limits = info.embeddings
    if limits is None:
        raise UnsupportedParameter(
            f"The model {info.name!r} has several text encoders; 'embeddings' are for models with "
            "one. Leave them out.",
            param="embeddings",
        )
    for name, flat in numbers.items():
        if len(flat) % limits.width:
            raise invalid(
                f"the embedding of {name} has {len(flat)} numbers; it must be vectors of "
                f"{limits.width} numbers each, the width of this model's text encoder"
            )
        if name in negative_prompt:
            raise invalid(
                f"the token {name} is in the 'negative_prompt', which cannot have embeddings"
            )
    vectors = {n: flat.astype(np.float32).reshape(-1, limits.width) for n, flat in numbers.items()}
    try:
        limits.check(prompt, vectors)
    except EmbeddingError as error:
        raise invalid(str(error)) from None
    return vectors


def _numbers(name: str, text: Any) -> Numbers:
    try:
        content = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        content = None
    if content is None:
        raise invalid(f"the embedding of {name} is not base64")
    if len(content) % 2:
        raise invalid(
            f"the embedding of {name} has {len(content)} bytes, an odd number; little-endian "
            "float16 takes two each"
        )
    return np.frombuffer(content, "<f2").astype(np.float16, copy=False)


def invalid(reason: str) -> InvalidParameter:
    """The error for embeddings that the server cannot use."""
    return InvalidParameter(f"Invalid 'embeddings': {reason}.", param="embeddings")
