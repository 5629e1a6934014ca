"""Guards from a name in plain Python: what is checked before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import guard
from guard.errors import DataError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "..."}, "has no letters"),
        ({"documents": ["nowhere.txt"]}, "nowhere.txt: cannot be read"),
        ({"fpr": 0.0}, "give 0.001 to 0.5"),
        ({"tokenizer": object()}, "together with its tokenizer"),
        ({"model": object()}, "together with its tokenizer"),
    ],
)
def test_faults_are_said_before_a_model_is_loaded(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    given = {"model": "no such model", "name": "Frankenstein", "out": tmp_path} | arguments
    with pytest.raises(DataError, match=message):
        guard.forget(given.pop("model"), given.pop("name"), **given)
