"""The encoder of a configuration is that of its heads."""

from __future__ import annotations

from typing import Any

import pytest

from guard.artifact import Artifact, ArtifactMeta
from guard.plans.text_encoders import encoder_for


def _head(name: str) -> Artifact:
    model = {"name": name, "architecture": "bert", "fingerprint": "f", "layers": 1, "width": 4}
    meta: dict[str, Any] = {"method": "screen", "concept": "text/x", "created": "2026-01-31"}
    return Artifact(ArtifactMeta.model_validate(meta | {"model": model, "seams": ["text"]}), {})


@pytest.mark.parametrize(
    ("names", "encoder"),
    [
        (["e5-small", "minilm"], "e5-small"),
        (["minilm", "e5-small"], "minilm"),
        (["/home/mine", "e5-small"], "e5-small"),
        (["../../elsewhere"], "minilm"),
    ],
)
def test_the_first_known_one_counts(names: list[str], encoder: str) -> None:
    assert encoder_for(map(_head, names)) == encoder
