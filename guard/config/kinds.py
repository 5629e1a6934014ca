"""The kinds of guards and engines, from metadata alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from guard.artifact import ArtifactMeta
from steering.methods import KINDS as SEAM_KINDS
from steering.methods import ModelKind

Engine = Literal["transformers", "diffusers", "vllm", "onnxruntime"]
Kind = ModelKind
"""What a guard acts on: language models, image models, or the texts and the image files of any
model from outside."""

KINDS: Mapping[Engine, Kind] = {
    "transformers": "language",
    "diffusers": "images",
    "vllm": "language",
    "onnxruntime": "text",
}


def kind_of(meta: ArtifactMeta) -> Kind | None:
    """The kind of a guard, by its seams; None if they are of no kind or of several."""
    kinds = {SEAM_KINDS[seam] for seam in meta.seams if seam in SEAM_KINDS}
    return kinds.pop() if len(kinds) == 1 else None
