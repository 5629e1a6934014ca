"""Suppression lists for the tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from guard.artifact import Artifact, ArtifactMeta
from tests.server.tiny_text_service import steer_meta, steer_tensors


def tiny_list(
    fingerprint: str, entries: Sequence[str], threshold: float, *, scores: Sequence[float] = ()
) -> Artifact:
    """A list whose entries have these scores at every token, 1 if left out."""
    base, count = steer_meta(fingerprint), len(entries)
    directions = np.asarray(steer_tensors()["directions"])
    width, layers = directions.shape[1], base.settings["sense_layers"]
    assert isinstance(layers, list)
    settings: dict[str, Any] = {
        **{key: base.settings[key] for key in ("sense_layers", "act_layers", "schedule")},
        **{"rest": 1, "radius": 1.0, "strength": 1.0, "recheck": None, "threshold": threshold},
        "entries": [*entries],
    }
    fields = base.model_dump() | {"method": "suppression-list", "settings": settings}
    tensors = {
        "gates": np.zeros((count, len(layers), width)),
        "bias": np.asarray(scores or [1.0] * count),
        "centres": np.zeros((count, 4)),
        "projection": np.zeros((len(layers), width, 4)),
        "directions": directions,
    }
    meta = ArtifactMeta.model_validate(fields | {"concept": "names/people", "tensors_sha256": ""})
    return Artifact(meta, tensors)
