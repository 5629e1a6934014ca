"""The limits on the learned embeddings of a request, and the messages where they are exceeded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from steering.images.textual_inversion import (
    MAX_PLACED,
    MAX_PLACEHOLDERS,
    MAX_VECTORS,
    EmbeddingLimits,
)

LIMITS = EmbeddingLimits(width=4, norm=10.0)


def of(value: float, vectors: int = 1, width: int = 4) -> Any:
    return np.full((vectors, width), value, np.float32)


def test_embeddings_within_the_limits_pass() -> None:
    LIMITS.check("a <x> and <Y-2_z>", {"<x>": of(5.0), "<Y-2_z>": of(-1.0, MAX_VECTORS - 1)})
    LIMITS.check("<x> " * MAX_PLACED, {"<x>": of(1.0)})
    LIMITS.check("a cat", {})


@pytest.mark.parametrize(
    "name",
    [
        *("", "x", "<>", "<x", "x>", "< x>", "<x >", "<-x>", "<é>", "<٣>", "<x>\n", "<a\x00b>"),
        *("<a.b>", "<" + "x" * 33 + ">", "<<x>>"),
    ],
)
def test_invalid_names_are_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(ValueError, match="written <name>") as error:
        LIMITS.check(f"a {name}", {name: of(1.0)})
    assert len(name) < 3 or name not in str(error.value)


@pytest.mark.parametrize(
    ("prompt", "vectors", "message"),
    [
        ("a cat", of(1.0), "not in the prompt"),
        ("a <X>", of(1.0), "not in the prompt"),
        ("a <x>", of(1.0, width=3), "vectors of 4 numbers"),
        ("a <x>", np.ones(4, np.float32), "vectors of 4 numbers"),
        ("a <x>", of(1.0, vectors=0), "has no vector"),
        ("a <x>", of(np.nan), "NaN or infinity"),
        ("a <x>", of(-np.inf), "NaN or infinity"),
        ("a <x>", of(5.001), "norm 10; the most is 10, 10 times"),
        ("a <x>", of(3e38), "the most is 10"),
        ("a <x>", of(1.0, MAX_VECTORS + 1), "33 vectors; the most is 32"),
        ("<x>" * (MAX_PLACED + 1), of(1.0), "257 vectors, repeats counted; the most is 256"),
    ],
)
def test_each_fault_is_reported(prompt: str, vectors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LIMITS.check(prompt, {"<x>": vectors})


def test_the_number_of_placeholders_is_limited() -> None:
    names = [f"<x{i}>" for i in range(MAX_PLACEHOLDERS + 1)]
    LIMITS.check(" ".join(names), {name: of(1.0) for name in names[1:]})
    with pytest.raises(ValueError, match="9 tokens have embeddings; the most is 8"):
        LIMITS.check(" ".join(names), {name: of(1.0) for name in names})
