"""Learned embeddings (textual inversion): words whose vectors come with the request.

A *placeholder* `<name>` in a prompt stands for one or more vectors of the text encoder's own input
embeddings. The limits here apply to every request that brings embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLACEHOLDER = re.compile(r"<[A-Za-z0-9][A-Za-z0-9_-]{0,31}>")
MAX_PLACEHOLDERS = 8
MAX_VECTORS = 32
"""The most vectors of all placeholders of a prompt together."""
MAX_PLACED = 256
"""The most vectors in a prompt, where those of a placeholder count for each of its occurrences."""
LARGEST = 10.0
"""The largest norm of a vector, as a multiple of the largest in the encoder's vocabulary."""


class EmbeddingError(ValueError):
    """The learned embeddings of a request are refused; the message says what to change, and shows
    no value."""


def check_names(names: Collection[str]) -> None:
    """Raise EmbeddingError where a name is no placeholder, or there are too many."""
    if len(names) > MAX_PLACEHOLDERS:
        raise EmbeddingError(f"{len(names)} tokens have embeddings; the most is {MAX_PLACEHOLDERS}")
    if not all(PLACEHOLDER.fullmatch(name) for name in names):
        raise EmbeddingError(
            "a token of an embedding is written <name>, with 1 to 32 letters, digits, '-' or '_' "
            "of which the first is a letter or a digit"
        )


@dataclass(frozen=True, slots=True)
class EmbeddingLimits:
    """The limits of a text encoder: vectors of `width`, with a Euclidean norm of at most `norm`."""

    width: int
    norm: float

    def check(self, prompt: str, learned: Mapping[str, NDArray[Any]]) -> None:
        """Raise EmbeddingError where `learned`, placeholder → `[vectors, width]`, is refused."""
        check_names(learned)
        for name, vectors in learned.items():
            self._check(prompt, name, vectors)
        count = sum(map(len, learned.values()))
        if count > MAX_VECTORS:
            raise EmbeddingError(f"the embeddings have {count} vectors; the most is {MAX_VECTORS}")
        placed = sum(prompt.count(name) * len(vectors) for name, vectors in learned.items())
        if placed > MAX_PLACED:
            raise EmbeddingError(
                f"the prompt holds {placed} vectors, repeats counted; the most is {MAX_PLACED}"
            )

    def _check(self, prompt: str, name: str, vectors: NDArray[Any]) -> None:
        if name not in prompt:
            raise EmbeddingError(f"the token {name} has an embedding, but is not in the prompt")
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise EmbeddingError(
                f"the embedding of {name} must be vectors of {self.width} numbers each, the width "
                "of this model's text encoder"
            )
        if not len(vectors):
            raise EmbeddingError(f"the embedding of {name} has no vector")
        if not np.isfinite(vectors).all():
            raise EmbeddingError(f"the embedding of {name} holds NaN or infinity")
        largest = float(np.linalg.norm(vectors.astype(np.float64), axis=1).max())
        if largest > self.norm:
            raise EmbeddingError(
                f"the embedding of {name} has a vector of norm {largest:.4g}; the most is "
                f"{self.norm:.4g}, {LARGEST:g} times the largest of this encoder's vocabulary"
            )
